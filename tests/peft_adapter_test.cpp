// PEFT adapters: the file PEFT itself writes is read, ours has exactly its keys, and every option
// that is not plain LoRA is refused by name.
#include "io/peft_adapter.h"

#include "io/json.h"
#include "io_files.h"

namespace utrain {
namespace {

// As PEFT 0.21 saves a plain adapter.
Json plain_config() {
  return parse_json(R"({"alora_invocation_tokens":null,"alpha_pattern":{},"arrow_config":null,
    "auto_mapping":null,"base_model_name_or_path":"org/model","bias":"none","corda_config":null,
    "ensure_weight_tying":false,"eva_config":null,"exclude_modules":null,"fan_in_fan_out":false,
    "inference_mode":true,"init_lora_weights":true,"kasa_config":null,"layer_replication":null,
    "layers_pattern":null,"layers_to_transform":null,"loftq_config":{},"lora_alpha":8,
    "lora_bias":false,"lora_dropout":0.05,"lora_ga_config":null,"megatron_config":null,
    "megatron_core":"megatron.core","modules_to_save":null,"monteclora_config":null,
    "peft_type":"LORA","peft_version":"0.21.2","qalora_group_size":16,"r":4,"rank_pattern":{},
    "revision":null,"target_modules":["v_proj","down_proj","q_proj"],"target_parameters":null,
    "task_type":"CAUSAL_LM","trainable_token_indices":null,"use_bdlora":null,"use_dora":false,
    "use_qalora":false,"use_rslora":true,"velora_config":null})",
                    "test");
}

void write_config(const TempDir& dir, const Json& config) {
  write_bytes(dir / "adapter_config.json", to_text(config));
}

TEST(PeftAdapter, ReadsWhatPeftWrites) {
  const TempDir dir;
  write_config(dir, plain_config());
  const AdapterConfig config = read_adapter_config(dir.str());
  EXPECT_EQ(config.r, 4);
  EXPECT_EQ(config.alpha, 8.0);
  EXPECT_EQ(config.dropout, 0.05);
  EXPECT_TRUE(config.use_rslora);
  EXPECT_EQ(config.target_modules, (std::vector<std::string>{"q_proj", "v_proj", "down_proj"}));
  EXPECT_EQ(config.base_model_name_or_path, "org/model");
}

TEST(PeftAdapter, ReadsTheFewestKeysAndAllLinear) {
  const TempDir dir;
  write_bytes(dir / "adapter_config.json",
              R"({"peft_type":"LORA","r":1,"lora_alpha":0.5,"target_modules":"all-linear"})");
  const AdapterConfig config = read_adapter_config(dir.str());
  EXPECT_EQ(config.target_modules,
            std::vector<std::string>(kProjectionNames.begin(), kProjectionNames.end()));
  EXPECT_EQ(config.alpha, 0.5);
  EXPECT_EQ(config.dropout, 0.0);
  EXPECT_FALSE(config.use_rslora);
  EXPECT_EQ(config.base_model_name_or_path, "");
}

TEST(PeftAdapter, AcceptsOtherPlainInitialisations) {
  const TempDir dir;
  for (const Json& init : {Json(true), Json(false), Json("gaussian"), Json("orthogonal"), Json()}) {
    write_config(dir, plain_config().set("init_lora_weights", init));
    EXPECT_NO_THROW(read_adapter_config(dir.str()));
  }
}

TEST(PeftAdapter, RefusesOtherOptionsByName) {
  const auto text = [](const char* json) { return parse_json(json, "test"); };
  const std::vector<std::tuple<std::string, Json, std::string>> cases = {
      {"peft_type", "IA3", "string \"IA3\" found: not supported"},
      {"peft_type", Json(), "nothing found"},
      {"task_type", "SEQ_CLS", "not supported"},
      {"r", 0, "integer 0 found, an integer from 1 to 32768 wanted"},
      {"r", -4, "integer -4"},
      {"r", 4.0, "number 4.0"},
      {"r", int64_t{1} << 62, "integer 4611686018427387904"},
      {"r", Json(), "nothing found"},
      {"lora_alpha", 0, "integer 0 found, a number above 0 wanted"},
      {"lora_alpha", -1.0, "above 0"},
      {"lora_alpha", "16", "a number wanted"},
      {"lora_dropout", 1.0, "[0, 1)"},
      {"lora_dropout", -0.1, "[0, 1)"},
      {"use_rslora", 1, "true or false"},
      {"bias", "all", "not supported"},
      {"bias", "lora_only", "not supported"},
      {"use_dora", true, "not supported"},
      {"use_qalora", true, "not supported"},
      {"lora_bias", true, "not supported"},
      {"fan_in_fan_out", true, "not supported"},
      {"init_lora_weights", "pissa", "not supported"},
      {"init_lora_weights", "pissa_niter_4", "not supported"},
      {"init_lora_weights", "olora", "not supported"},
      {"init_lora_weights", "loftq", "not supported"},
      {"init_lora_weights", 1, "not supported"},
      {"rank_pattern", text(R"({"q_proj":8})"), "object of 1 found: not supported"},
      {"alpha_pattern", text(R"({"q_proj":8})"), "not supported"},
      {"modules_to_save", text(R"(["lm_head"])"), "array of 1 found: not supported"},
      {"layers_to_transform", text("[0,1]"), "not supported"},
      {"layers_to_transform", 0, "not supported"},
      {"layers_pattern", "layers", "not supported"},
      {"layer_replication", text("[[0,4]]"), "not supported"},
      {"exclude_modules", text(R"(["q_proj"])"), "not supported"},
      {"target_parameters", text(R"(["experts"])"), "not supported"},
      {"trainable_token_indices", text("[5]"), "not supported"},
      {"megatron_config", text(R"({"x":1})"), "not supported"},
      {"an_option_of_later", "on", "not supported"},
      {"target_modules", ".*q_proj", "regular expression): not supported"},
      {"target_modules", text("[]"), "empty list"},
      {"target_modules", text("[1]"), "element 0 is integer 1"},
      {"target_modules", text(R"(["q_proj","lm_head"])"),
       "string \"lm_head\" found: not supported"},
      {"target_modules", Json(), "nothing found"},
      {"base_model_name_or_path", 1, "a string wanted"},
  };
  const TempDir dir;
  for (const auto& [key, value, word] : cases) {
    SCOPED_TRACE(key + " = " + to_text(value));
    write_config(dir, plain_config().set(key, value));
    expect_refused([&] { read_adapter_config(dir.str()); }, ExitCode::bad_file,
                   {"adapter_config.json: " + key + ": ", word});
  }
}

TEST(PeftAdapter, RefusesMissingAndMalformedFiles) {
  const TempDir dir;
  expect_refused([&] { read_adapter_config(dir / "none"); }, ExitCode::usage,
                 {"none: no such directory"});
  expect_refused([&] { read_adapter_config(dir.str()); }, ExitCode::bad_file,
                 {"adapter_config.json: no such file"});
  std::filesystem::create_directory(dir / "adapter");
  expect_refused([&] { read_adapter_config(dir.str()); }, ExitCode::bad_file,
                 {"adapter_config.json: no such file; check the path"});
  write_bytes(dir / "adapter/adapter_config.json", "{}");
  expect_refused(
      [&] { read_adapter_config(dir.str()); }, ExitCode::bad_file,
      {"adapter_config.json: no such file", "; name the adapter itself: " + (dir / "adapter")});
  write_bytes(dir / "adapter_config.json", "{\"r\":1,\"r\":2}");
  expect_refused([&] { read_adapter_config(dir.str()); }, ExitCode::bad_file,
                 {"\"r\" found twice"});
  write_bytes(dir / "adapter_config.json", std::string((1 << 20) + 1, ' '));
  expect_refused([&] { read_adapter_config(dir.str()); }, ExitCode::bad_file,
                 {"1048577 bytes found"});
  expect_refused([&] { open_adapter_weights(dir.str()); }, ExitCode::bad_file,
                 {"adapter_model.safetensors: no such file"});
  write_bytes(dir / "adapter_model.bin", "");
  expect_refused([&] { open_adapter_weights(dir.str()); }, ExitCode::bad_file,
                 {"adapter_model.bin found", "not read"});
}

TEST(PeftAdapter, WritesExactlyPeftsKeys) {
  const TempDir dir;
  AdapterConfig config;
  config.r = 16;
  config.alpha = 32.0;
  config.target_modules = {"q_proj", "up_proj"};
  config.base_model_name_or_path = "models/llama";
  write_adapter_config(dir.str(), config);
  const Json json = parse_json(read_bytes(dir / "adapter_config.json"), "test");
  EXPECT_EQ(
      to_text(json),
      R"({"alpha_pattern":{},"auto_mapping":null,"base_model_name_or_path":"models/llama",)"
      R"("bias":"none","fan_in_fan_out":false,"inference_mode":true,"init_lora_weights":true,)"
      R"("layer_replication":null,"layers_pattern":null,"layers_to_transform":null,)"
      R"("loftq_config":{},"lora_alpha":32,"lora_dropout":0.0,"megatron_config":null,)"
      R"("megatron_core":"megatron.core","modules_to_save":null,"peft_type":"LORA","r":16,)"
      R"("rank_pattern":{},"revision":null,"target_modules":["q_proj","up_proj"],)"
      R"("task_type":"CAUSAL_LM","use_dora":false,"use_rslora":false})");
  EXPECT_EQ(dir.n_files(), 1u);

  config.alpha = 0.1;
  config.dropout = 0.25;
  config.use_rslora = true;
  write_adapter_config(dir.str(), config);
  const AdapterConfig back = read_adapter_config(dir.str());
  EXPECT_EQ(back.alpha, 0.1);
  EXPECT_EQ(back.dropout, 0.25);
  EXPECT_TRUE(back.use_rslora);
  EXPECT_EQ(back.target_modules, config.target_modules);
  expect_refused([&] { write_adapter_config(dir / "none", config); }, ExitCode::io,
                 {"adapter_config.json"});
}

TEST(PeftAdapter, NamesTensorsAsPeft) {
  EXPECT_EQ(adapter_tensor_name(0, Projection::q, 'A'),
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
  EXPECT_EQ(adapter_tensor_name(31, Projection::o, 'B'),
            "base_model.model.model.layers.31.self_attn.o_proj.lora_B.weight");
  EXPECT_EQ(adapter_tensor_name(1, Projection::gate, 'B'),
            "base_model.model.model.layers.1.mlp.gate_proj.lora_B.weight");
}

}  // namespace
}  // namespace utrain
