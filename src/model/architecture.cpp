#include "model/architecture.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <system_error>

#include "io/file.h"
#include "io/json.h"

namespace utrain {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxHidden = int64_t{1} << 17;
constexpr int64_t kMaxIntermediate = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = int64_t{1} << 14;
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxHeadDim = 256;  // the widest our attention kernels take
constexpr int64_t kMaxPositions = int64_t{1} << 31;

// What a configuration class of transformers assumes for a key that config.json leaves out.
struct Family {
  std::string_view model_type;
  int64_t vocab_size, intermediate_size;
  int64_t n_kv_heads;  // 0: as many as heads
  int64_t head_dim;    // 0: hidden_size / heads
  int64_t max_position_embeddings;
  bool bias_is_a_key;  // attention_bias is read, for q, k, v and o; else qkv_bias holds
  bool qkv_bias;       // of q, k, v
  bool mlp_bias_is_a_key;
  bool qk_norm;
  enum class Window { none, all_layers, by_layer } window;
};
constexpr std::array<Family, 4> kFamilies = {{
    {"llama", 32000, 11008, 0, 0, 2048, true, false, true, false, Family::Window::none},
    {"mistral", 32000, 14336, 8, 0, 131072, false, false, false, false, Family::Window::all_layers},
    {"qwen2", 151936, 22016, 32, 0, 32768, false, true, false, false, Family::Window::by_layer},
    {"qwen3", 151936, 22016, 32, 128, 32768, true, false, false, true, Family::Window::by_layer},
}};

// Keys of other architectures: set, they would change the forward pass.
constexpr std::array<std::string_view, 24> kRefusedKeys = {
    "quantization_config",
    "compression_config",
    "text_config",
    "vision_config",
    "audio_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attn_logit_softcap",
    "final_logit_softcap",
    "query_pre_attn_scalar",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "attention_chunk_size",
    "no_rope_layers",
    "use_qk_norm",
    "kv_lora_rank",
};

constexpr std::string_view kNotOurs = "take a model of another kind: llama, mistral, qwen2, qwen3";

[[noreturn]] void refuse(const JsonObjectReader& config, std::string_view key) {
  config.fail_key(key, fmt::format("{} found: not supported", describe(config.at(key))), kNotOurs);
}

double positive(const JsonObjectReader& config, std::string_view key, double fallback) {
  const double value = config.number_or(key, fallback);
  if (!(value > 0.0) || !std::isfinite(value)) {
    config.fail_key(key, fmt::format("{} found, a number above 0 wanted", describe(config.at(key))),
                    "correct this key");
  }
  return value;
}

const Family& read_family(const JsonObjectReader& config) {
  const std::string& model_type = config.string("model_type");
  const Family* family = nullptr;
  for (const Family& known : kFamilies) {
    if (known.model_type == model_type) family = &known;
  }
  if (family == nullptr) refuse(config, "model_type");
  if (config.has("architectures")) {
    for (const std::string& name : config.strings("architectures")) {
      if (!name.ends_with("ForCausalLM")) {
        config.fail_key("architectures", fmt::format("{} found: not supported", describe(name)),
                        "take a model for causal language modelling (...ForCausalLM)");
      }
    }
  }
  return *family;
}

void refuse_other_mathematics(const JsonObjectReader& config, const Family& family) {
  for (const std::string_view key : kRefusedKeys) {
    const Json* value = config.find(key);
    const bool off = value == nullptr || (value->is_bool() && !value->as_bool()) ||
                     (value->is_number() && value->as_double() == 0.0);
    if (!off) refuse(config, key);
  }
  for (const std::string_view key : {"hidden_act", "hidden_activation"}) {
    // "swish" is another name of the same function.
    const std::string act = config.string_or(key, "silu");
    if (act != "silu" && act != "swish") refuse(config, key);
  }
  if (config.integer_or("pretraining_tp", 0, kMaxHidden, 1) > 1) refuse(config, "pretraining_tp");
  if (config.number_or("attention_dropout", 0.0) != 0.0) refuse(config, "attention_dropout");
  if (config.number_or("partial_rotary_factor", 1.0) != 1.0) {
    refuse(config, "partial_rotary_factor");
  }
  if (!family.bias_is_a_key && !family.qkv_bias && config.boolean_or("attention_bias", false)) {
    refuse(config, "attention_bias");
  }
  if (!family.mlp_bias_is_a_key && config.boolean_or("mlp_bias", false)) {
    refuse(config, "mlp_bias");
  }
}

void read_sizes(const JsonObjectReader& config, const Family& family, Architecture& a) {
  a.hidden_size = config.integer_or("hidden_size", 1, kMaxHidden, 4096);
  a.n_layers = config.integer_or("num_hidden_layers", 1, kMaxLayers, 32);
  a.n_heads = config.integer_or("num_attention_heads", 1, kMaxHeads, 32);
  a.intermediate_size =
      config.integer_or("intermediate_size", 1, kMaxIntermediate, family.intermediate_size);
  a.vocab_size = config.integer_or("vocab_size", 1, kMaxVocab, family.vocab_size);
  a.max_position_embeddings = config.integer_or("max_position_embeddings", 1, kMaxPositions,
                                                family.max_position_embeddings);

  // An explicit null means as many as heads, whatever the default of the family.
  const bool null_kv_heads =
      config.json().find("num_key_value_heads") != nullptr && !config.has("num_key_value_heads");
  const int64_t kv_heads = null_kv_heads || family.n_kv_heads == 0 ? a.n_heads : family.n_kv_heads;
  a.n_kv_heads = config.integer_or("num_key_value_heads", 1, kMaxHeads, kv_heads);
  if (a.n_heads % a.n_kv_heads != 0) {
    config.fail_key("num_key_value_heads",
                    fmt::format("{} found, a divisor of {} heads wanted", a.n_kv_heads, a.n_heads),
                    "correct this key");
  }

  if (family.head_dim != 0 && config.json().find("head_dim") != nullptr) config.at("head_dim");
  a.head_dim = config.integer_or("head_dim", 1, kMaxHidden, family.head_dim);
  if (a.head_dim == 0) {
    if (a.hidden_size % a.n_heads != 0) {
      config.fail_key(
          "hidden_size",
          fmt::format("{} found, a multiple of {} heads wanted where head_dim is absent",
                      a.hidden_size, a.n_heads),
          "correct this key or set head_dim");
    }
    a.head_dim = a.hidden_size / a.n_heads;
  }
  if (a.head_dim % 2 != 0 || a.head_dim > kMaxHeadDim) {
    config.fail_key("head_dim",
                    fmt::format("{} found: not supported, an even number up to {} wanted",
                                a.head_dim, kMaxHeadDim),
                    kNotOurs);
  }
}

void read_rope(const JsonObjectReader& config, Architecture& a) {
  a.rope.theta = positive(config, "rope_theta", 10000.0);
  // Where a file has both spellings, transformers takes the old one.
  std::string_view key = "rope_parameters";
  const Json* scaling = config.find("rope_scaling");
  if (scaling != nullptr && !(scaling->is_object() && scaling->as_object().empty())) {
    key = "rope_scaling";
  }
  if (!config.has(key)) return;
  const JsonObjectReader rope = config.object(key);

  for (const auto& [name, value] : rope.json().as_object()) {
    constexpr std::array<std::string_view, 8> kKnown = {"rope_type",
                                                        "type",
                                                        "rope_theta",
                                                        "factor",
                                                        "low_freq_factor",
                                                        "high_freq_factor",
                                                        "original_max_position_embeddings",
                                                        "partial_rotary_factor"};
    const bool known = std::find(kKnown.begin(), kKnown.end(), name) != kKnown.end();
    if (!known && !value.is_null()) refuse(rope, name);
  }
  const std::string type = rope.string_or("rope_type", rope.string_or("type", "default"));
  if (rope.string_or("type", type) != type) refuse(rope, "type");
  if (type != "default" && type != "llama3")
    refuse(rope, rope.has("rope_type") ? "rope_type" : "type");
  if (rope.number_or("partial_rotary_factor", 1.0) != 1.0) refuse(rope, "partial_rotary_factor");
  a.rope.theta = positive(rope, "rope_theta", a.rope.theta);
  if (type == "default") return;

  a.rope.type = Rope::Type::llama3;
  for (const std::string_view needed : {"factor", "low_freq_factor", "high_freq_factor"}) {
    rope.at(needed);
  }
  a.rope.factor = positive(rope, "factor", 1.0);
  a.rope.low_freq_factor = positive(rope, "low_freq_factor", 1.0);
  a.rope.high_freq_factor = positive(rope, "high_freq_factor", 1.0);
  if (a.rope.factor < 1.0) {
    rope.fail_key("factor", fmt::format("{} found, at least 1 wanted", a.rope.factor),
                  "correct this key");
  }
  if (a.rope.high_freq_factor <= a.rope.low_freq_factor) {
    rope.fail_key("high_freq_factor",
                  fmt::format("{} found, more than low_freq_factor = {} wanted",
                              a.rope.high_freq_factor, a.rope.low_freq_factor),
                  "correct this key");
  }
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  a.rope.original_max_position_embeddings =
      rope.integer_or(kOriginal, 1, kMaxPositions, a.max_position_embeddings);
  // Versions of transformers differ in which of two values they take.
  const int64_t outer =
      config.integer_or(kOriginal, 1, kMaxPositions, a.rope.original_max_position_embeddings);
  if (outer != a.rope.original_max_position_embeddings) {
    config.fail_key(kOriginal,
                    fmt::format("{} found, but {} holds in {}: not supported", outer,
                                a.rope.original_max_position_embeddings, key),
                    fmt::format("write the right one in {} and remove this key", key));
  }
}

// mistral: sliding_window on every layer, null = none, left out = 4096.
// qwen: only with use_sliding_window, on layers from max_window_layers on; layer_types overrules
// that.
void read_windows(const JsonObjectReader& config, const Family& family, Architecture& a) {
  const bool by_layer = family.window == Family::Window::by_layer;
  const bool used = by_layer ? config.boolean_or("use_sliding_window", false)
                             : family.window == Family::Window::all_layers;
  const bool left_out = config.json().find("sliding_window") == nullptr;
  int64_t window = 0, first_layer = 0;
  if (used) window = config.integer_or("sliding_window", 1, kMaxPositions, left_out ? 4096 : 0);
  if (used && by_layer) first_layer = config.integer_or("max_window_layers", 0, kMaxPositions, 28);
  for (int64_t layer = 0; layer < a.n_layers; ++layer) {
    a.window.push_back(layer >= first_layer ? window : 0);
  }
  if (!config.has("layer_types")) return;

  const std::vector<std::string> types = config.strings("layer_types");
  if (static_cast<int64_t>(types.size()) != a.n_layers) {
    config.fail_key("layer_types",
                    fmt::format("{} entries found, {} wanted", types.size(), a.n_layers),
                    "correct this key or num_hidden_layers");
  }
  for (size_t layer = 0; layer < types.size(); ++layer) {
    const bool slides = types[layer] == "sliding_attention";
    if (!slides && types[layer] != "full_attention") {
      config.fail_key("layer_types", fmt::format("{} found: not supported", describe(types[layer])),
                      kNotOurs);
    }
    if (by_layer) a.window[layer] = slides ? window : 0;
    // Elsewhere the list has no say; where it contradicts, no reading is the right one.
    if (slides != (a.window[layer] != 0)) {
      config.fail_key(
          "layer_types",
          fmt::format("{} found for layer {}, which has {}", describe(types[layer]), layer,
                      a.window[layer] != 0 ? "a sliding window" : "no sliding window"),
          "make layer_types, sliding_window and use_sliding_window agree");
    }
  }
}

}  // namespace

Architecture read_architecture(const std::string& model_dir) {
  std::error_code error;
  if (!fs::is_directory(model_dir, error)) {
    fail(ExitCode::usage, model_dir, "no such directory, a model directory wanted",
         "check model.path");
  }
  const std::string path = (fs::path(model_dir) / "config.json").string();
  const Json json = parse_json(read_text_file(path, kMaxConfigBytes, ExitCode::bad_file), path);
  const JsonObjectReader config(json, path);
  const Family& family = read_family(config);
  refuse_other_mathematics(config, family);

  Architecture a;
  a.model_type = family.model_type;
  read_sizes(config, family, a);
  a.norm_eps = positive(config, "rms_norm_eps", 1e-6);
  a.tied_embeddings = config.boolean_or("tie_word_embeddings", false);
  a.o_bias = family.bias_is_a_key && config.boolean_or("attention_bias", false);
  a.attention_bias = family.qkv_bias || a.o_bias;
  a.mlp_bias = family.mlp_bias_is_a_key && config.boolean_or("mlp_bias", false);
  a.qk_norm = family.qk_norm;
  a.initializer_range = config.number_or("initializer_range", 0.02);
  if (!(a.initializer_range >= 0.0 && a.initializer_range <= 1.0)) {
    config.fail_key("initializer_range",
                    fmt::format("{} found, a number from 0 to 1 wanted", a.initializer_range),
                    "correct this key");
  }
  read_rope(config, a);
  read_windows(config, family, a);
  return a;
}

std::vector<TensorSpec> expected_tensors(const Architecture& a) {
  const int64_t q = a.n_heads * a.head_dim, kv = a.n_kv_heads * a.head_dim;
  std::vector<TensorSpec> specs;
  const auto add_linear = [&specs](const std::string& name, int64_t out, int64_t in, bool bias) {
    specs.push_back({name + ".weight", {out, in}});
    if (bias) specs.push_back({name + ".bias", {out}});
  };
  specs.push_back({"model.embed_tokens.weight", {a.vocab_size, a.hidden_size}});
  for (int64_t layer = 0; layer < a.n_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    specs.push_back({prefix + "input_layernorm.weight", {a.hidden_size}});
    add_linear(prefix + "self_attn.q_proj", q, a.hidden_size, a.attention_bias);
    add_linear(prefix + "self_attn.k_proj", kv, a.hidden_size, a.attention_bias);
    add_linear(prefix + "self_attn.v_proj", kv, a.hidden_size, a.attention_bias);
    add_linear(prefix + "self_attn.o_proj", a.hidden_size, q, a.o_bias);
    if (a.qk_norm) {
      specs.push_back({prefix + "self_attn.q_norm.weight", {a.head_dim}});
      specs.push_back({prefix + "self_attn.k_norm.weight", {a.head_dim}});
    }
    specs.push_back({prefix + "post_attention_layernorm.weight", {a.hidden_size}});
    add_linear(prefix + "mlp.gate_proj", a.intermediate_size, a.hidden_size, a.mlp_bias);
    add_linear(prefix + "mlp.up_proj", a.intermediate_size, a.hidden_size, a.mlp_bias);
    add_linear(prefix + "mlp.down_proj", a.hidden_size, a.intermediate_size, a.mlp_bias);
  }
  specs.push_back({"model.norm.weight", {a.hidden_size}});
  if (!a.tied_embeddings) specs.push_back({"lm_head.weight", {a.vocab_size, a.hidden_size}});
  return specs;
}

int64_t Architecture::n_parameters() const {
  int64_t n = 0;
  for (const TensorSpec& spec : expected_tensors(*this)) {
    int64_t n_elem = 1;
    for (const int64_t size : spec.shape) n_elem *= size;
    n += n_elem;
  }
  return n;
}

}  // namespace utrain
