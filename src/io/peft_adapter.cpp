#include "io/peft_adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <system_error>

#include "io/file.h"
#include "io/json.h"

namespace utrain {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxRank = int64_t{1} << 15;

// Keys that change no number of a plain adapter, whatever their value.
const std::set<std::string, std::less<>> kNeutralKeys = {
    "auto_mapping", "inference_mode", "megatron_core",     "peft_version",
    "revision",     "parent_library", "qalora_group_size", "runtime_config",
};
// Keys that read_adapter_config looks at itself.
const std::set<std::string, std::less<>> kReadKeys = {
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "bias",
    "init_lora_weights",
    "target_modules",
    "base_model_name_or_path",
};

std::string config_path(const std::string& dir) {
  return (fs::path(dir) / "adapter_config.json").string();
}

bool is_off(const Json& value) {
  if (value.is_null()) return true;
  if (value.is_bool()) return !value.as_bool();
  if (value.is_array()) return value.as_array().empty();
  if (value.is_object()) return value.as_object().empty();
  return false;
}

[[noreturn]] void refuse_option(const JsonObjectReader& config, std::string_view key) {
  config.fail_key(key, fmt::format("{} found: not supported", describe(config.at(key))),
                  "train from a plain LoRA adapter");
}

// DoRA, patterns, modules_to_save, layers_to_transform, and whatever a later PEFT adds: on means
// refused.
void refuse_options(const JsonObjectReader& config) {
  for (const auto& [key, value] : config.json().as_object()) {
    if (kReadKeys.contains(key) || kNeutralKeys.contains(key) || is_off(value)) continue;
    refuse_option(config, key);
  }
  if (config.string_or("bias", "none") != "none") refuse_option(config, "bias");
  if (config.string_or("task_type", "CAUSAL_LM") != "CAUSAL_LM") {
    refuse_option(config, "task_type");
  }
  // Other ways to initialise also change the base weights, or only make sense with them.
  if (const Json* init = config.find("init_lora_weights")) {
    const bool plain =
        init->is_bool() || (init->is_string() &&
                            (init->as_string() == "gaussian" || init->as_string() == "orthogonal"));
    if (!plain) refuse_option(config, "init_lora_weights");
  }
}

std::vector<std::string> read_target_modules(const JsonObjectReader& config) {
  constexpr std::string_view kKey = "target_modules";
  if (config.at(kKey).is_string()) {
    if (config.string(kKey) != "all-linear") {
      config.fail_key(
          kKey,
          fmt::format("{} found (a regular expression): not supported", describe(config.at(kKey))),
          "list the projections, or say \"all-linear\"");
    }
    return {kProjectionNames.begin(), kProjectionNames.end()};
  }
  const std::vector<std::string> names = config.strings(kKey);
  if (names.empty()) config.fail_key(kKey, "empty list found", "name at least one projection");
  for (const std::string& name : names) {
    if (std::find(kProjectionNames.begin(), kProjectionNames.end(), name) != kProjectionNames.end())
      continue;
    config.fail_key(
        kKey, fmt::format("{} found: not supported", describe(Json(name))),
        fmt::format("only these can be trained: {}", fmt::join(kProjectionNames, ", ")));
  }
  std::vector<std::string> sorted;
  for (const std::string_view projection : kProjectionNames) {
    if (std::find(names.begin(), names.end(), projection) != names.end()) {
      sorted.emplace_back(projection);
    }
  }
  return sorted;
}

}  // namespace

AdapterConfig read_adapter_config(const std::string& dir) {
  std::error_code error;
  if (!fs::is_directory(dir, error)) {
    fail(ExitCode::usage, dir, "no such directory, a PEFT adapter directory wanted",
         "check the path of the adapter");
  }
  const std::string path = config_path(dir);
  const std::string inner = (fs::path(dir) / "adapter").string();
  if (!fs::exists(path, error) && fs::exists(config_path(inner), error)) {
    fail(ExitCode::bad_file, path, "no such file, but a run directory with an adapter/ found",
         fmt::format("name the adapter itself: {}", inner));
  }
  const Json json = parse_json(read_text_file(path, kMaxConfigBytes, ExitCode::bad_file), path);
  const JsonObjectReader config(json, path);
  if (config.string("peft_type") != "LORA") refuse_option(config, "peft_type");
  refuse_options(config);

  AdapterConfig adapter;
  adapter.r = config.integer("r", 1, kMaxRank);
  adapter.alpha = config.number("lora_alpha");
  if (!(adapter.alpha > 0.0) || !std::isfinite(adapter.alpha)) {
    config.fail_key(
        "lora_alpha",
        fmt::format("{} found, a number above 0 wanted", describe(config.at("lora_alpha"))),
        "correct this key");
  }
  adapter.dropout = config.number_or("lora_dropout", 0.0);
  if (!(adapter.dropout >= 0.0 && adapter.dropout < 1.0)) {
    config.fail_key(
        "lora_dropout",
        fmt::format("{} found, a number in [0, 1) wanted", describe(config.at("lora_dropout"))),
        "correct this key");
  }
  adapter.use_rslora = config.boolean_or("use_rslora", false);
  adapter.target_modules = read_target_modules(config);
  adapter.base_model_name_or_path = config.string_or("base_model_name_or_path", "");
  return adapter;
}

void write_adapter_config(const std::string& dir, const AdapterConfig& config) {
  // The keys that every version of PEFT knows: older ones refuse any other.
  const bool integral = config.alpha == std::floor(config.alpha) && std::fabs(config.alpha) < 1e15;
  Json targets = Json::array();
  for (const std::string& name : config.target_modules) targets.push_back(name);
  Json json = Json::object();
  json.set("alpha_pattern", Json::object())
      .set("auto_mapping", Json())
      .set("base_model_name_or_path", config.base_model_name_or_path)
      .set("bias", "none")
      .set("fan_in_fan_out", false)
      .set("inference_mode", true)
      .set("init_lora_weights", true)
      .set("layer_replication", Json())
      .set("layers_pattern", Json())
      .set("layers_to_transform", Json())
      .set("loftq_config", Json::object())
      .set("lora_alpha", integral ? Json(static_cast<int64_t>(config.alpha)) : Json(config.alpha))
      .set("lora_dropout", config.dropout)
      .set("megatron_config", Json())
      .set("megatron_core", "megatron.core")
      .set("modules_to_save", Json())
      .set("peft_type", "LORA")
      .set("r", config.r)
      .set("rank_pattern", Json::object())
      .set("revision", Json())
      .set("target_modules", std::move(targets))
      .set("task_type", "CAUSAL_LM")
      .set("use_dora", false)
      .set("use_rslora", config.use_rslora);
  write_text_file(config_path(dir), to_pretty_text(json) + "\n");
}

std::string adapter_weights_path(const std::string& dir) {
  return (fs::path(dir) / "adapter_model.safetensors").string();
}

SafetensorsFile open_adapter_weights(const std::string& dir) {
  const std::string path = adapter_weights_path(dir);
  std::error_code error;
  if (!fs::exists(path, error) && fs::exists(fs::path(dir) / "adapter_model.bin", error)) {
    fail(ExitCode::bad_file, dir,
         "adapter_model.bin found, adapter_model.safetensors wanted: pickled weights can run code "
         "and are not read",
         "load the adapter in PEFT once and save it with safe_serialization=True");
  }
  return SafetensorsFile(path, ExitCode::bad_file);
}

std::string adapter_tensor_name(int64_t layer, Projection projection, char matrix) {
  ASSERT(layer >= 0 && (matrix == 'A' || matrix == 'B'));
  return fmt::format("base_model.model.model.layers.{}.{}.lora_{}.weight", layer,
                     module_of(projection), matrix);
}

}  // namespace utrain
