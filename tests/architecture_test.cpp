// config.json: both spellings of transformers, the defaults of each family, the windows layer by
// layer, and everything that must be refused by name instead of computed wrongly.
#include "model/architecture.h"

#include <set>

#include "io/json.h"
#include "io/model_files.h"
#include "io_files.h"
#include "places.h"

namespace utrain {
namespace {

Json parse(const std::string& text) {
  return parse_json(text, "test");
}

Architecture read(const Json& config) {
  const TempDir dir;
  write_bytes(dir / "config.json", to_text(config));
  return read_architecture(dir.str());
}

Json small(const char* model_type) {
  return parse(fmt::format(R"({{"model_type":"{}","hidden_size":64,"num_hidden_layers":4,
    "num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"intermediate_size":176,
    "vocab_size":320,"max_position_embeddings":128}})",
                           model_type));
}

TEST(Architecture, DefaultsOfEachFamily) {
  const auto only = [](const char* type) { return read(Json::object().set("model_type", type)); };
  const Architecture llama = only("llama"), mistral = only("mistral"), qwen2 = only("qwen2"),
                     qwen3 = only("qwen3");
  for (const Architecture& a : {llama, mistral, qwen2, qwen3}) {
    EXPECT_EQ(a.hidden_size, 4096);
    EXPECT_EQ(a.n_layers, 32);
    EXPECT_EQ(a.n_heads, 32);
    EXPECT_EQ(a.head_dim, 128);
    EXPECT_EQ(a.norm_eps, 1e-6);
    EXPECT_EQ(a.initializer_range, 0.02);
    EXPECT_EQ(a.rope.theta, 10000.0);
    EXPECT_EQ(a.rope.type, Rope::Type::plain);
    EXPECT_FALSE(a.tied_embeddings || a.o_bias || a.mlp_bias);
    EXPECT_EQ(a.attention_bias, a.model_type == "qwen2");
    EXPECT_EQ(a.qk_norm, a.model_type == "qwen3");
    EXPECT_EQ(a.window, std::vector<int64_t>(32, a.model_type == "mistral" ? 4096 : 0));
  }
  EXPECT_EQ(llama.n_kv_heads, 32);
  EXPECT_EQ(mistral.n_kv_heads, 8);
  EXPECT_EQ(qwen2.n_kv_heads, 32);
  EXPECT_EQ(llama.intermediate_size, 11008);
  EXPECT_EQ(mistral.intermediate_size, 14336);
  EXPECT_EQ(qwen3.intermediate_size, 22016);
  EXPECT_EQ(llama.vocab_size, 32000);
  EXPECT_EQ(qwen2.vocab_size, 151936);
  EXPECT_EQ(llama.max_position_embeddings, 2048);
  EXPECT_EQ(mistral.max_position_embeddings, 131072);
  EXPECT_EQ(qwen3.max_position_embeddings, 32768);
  // Llama 2 7B, Mistral 7B: the published numbers of parameters.
  EXPECT_EQ(llama.n_parameters(), 6738415616);
  EXPECT_EQ(mistral.n_parameters(), 7241732096);
}

TEST(Architecture, ReadsTheKeys) {
  const Architecture a = read(small("llama")
                                  .set("rms_norm_eps", 1e-5)
                                  .set("tie_word_embeddings", true)
                                  .set("attention_bias", true)
                                  .set("mlp_bias", true)
                                  .set("initializer_range", 0.01)
                                  .set("torch_dtype", "bfloat16")
                                  .set("architectures", parse(R"(["LlamaForCausalLM"])")));
  EXPECT_EQ(a.hidden_size, 64);
  EXPECT_EQ(a.n_layers, 4);
  EXPECT_EQ(a.n_heads, 4);
  EXPECT_EQ(a.n_kv_heads, 2);
  EXPECT_EQ(a.head_dim, 16);
  EXPECT_EQ(a.intermediate_size, 176);
  EXPECT_EQ(a.vocab_size, 320);
  EXPECT_EQ(a.max_position_embeddings, 128);
  EXPECT_EQ(a.norm_eps, 1e-5);
  EXPECT_EQ(a.initializer_range, 0.01);
  EXPECT_TRUE(a.tied_embeddings && a.attention_bias && a.o_bias && a.mlp_bias);
}

TEST(Architecture, NullAndAbsentHeads) {
  EXPECT_EQ(read(small("llama").set("num_key_value_heads", Json())).n_kv_heads, 4);
  EXPECT_EQ(read(small("mistral").set("num_key_value_heads", Json())).n_kv_heads, 4);
  EXPECT_EQ(read(small("llama").set("head_dim", Json()).set("hidden_size", 96)).head_dim, 24);
  // Heads times head_dim need not be the hidden size.
  EXPECT_EQ(read(small("qwen3").set("head_dim", 32)).head_dim, 32);
  EXPECT_EQ(read(small("llama").set("hidden_size", 66)).hidden_size, 66);
}

TEST(Architecture, RopeInBothSpellings) {
  const char* llama3 = R"({"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,
    "high_freq_factor":4.0,"original_max_position_embeddings":8192})";
  const char* llama3_v5 = R"({"rope_type":"llama3","factor":32,"low_freq_factor":1,
    "high_freq_factor":4,"original_max_position_embeddings":8192,"rope_theta":500000.0})";
  const Architecture v4 =
      read(small("llama").set("rope_theta", 500000.0).set("rope_scaling", parse(llama3)));
  const Architecture v5 = read(small("llama").set("rope_parameters", parse(llama3_v5)));
  for (const Architecture& a : {v4, v5}) {
    EXPECT_EQ(a.rope.theta, 500000.0);
    EXPECT_EQ(a.rope.type, Rope::Type::llama3);
    EXPECT_EQ(a.rope.factor, 32.0);
    EXPECT_EQ(a.rope.low_freq_factor, 1.0);
    EXPECT_EQ(a.rope.high_freq_factor, 4.0);
    EXPECT_EQ(a.rope.original_max_position_embeddings, 8192);
  }
  EXPECT_EQ(read(small("llama").set("rope_theta", 1000000)).rope.theta, 1e6);
  EXPECT_EQ(read(small("llama").set("rope_scaling", Json())).rope.theta, 1e4);
  EXPECT_EQ(read(small("llama").set("rope_scaling", Json::object())).rope.theta, 1e4);
  EXPECT_EQ(read(small("qwen2").set("rope_parameters", parse(R"({"rope_theta":7.0})"))).rope.theta,
            7.0);
  // The nested value is the newer one, and "type" the older name of "rope_type".
  const Json plain = parse(R"({"type":"default","rope_theta":5.0,"factor":null})");
  EXPECT_EQ(read(small("llama").set("rope_theta", 3.0).set("rope_parameters", plain)).rope.theta,
            5.0);
  Json old_name = parse(llama3);
  old_name.set("type", "llama3")
      .set("rope_type", Json())
      .set("original_max_position_embeddings", Json());
  const Architecture a = read(small("llama").set("rope_scaling", old_name));
  EXPECT_EQ(a.rope.type, Rope::Type::llama3);
  EXPECT_EQ(a.rope.original_max_position_embeddings, 128);

  const auto with_outer = [&](const char* key, int64_t original) {
    return small("llama").set(key, parse(llama3)).set("original_max_position_embeddings", original);
  };
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    EXPECT_EQ(read(with_outer(key, 8192)).rope.original_max_position_embeddings, 8192);
    expect_refused([&] { read(with_outer(key, 4096)); }, ExitCode::bad_file,
                   {"config.json: original_max_position_embeddings: 4096 found", "8192", key,
                    "not supported"});
  }
}

TEST(Architecture, Windows) {
  using Windows = std::vector<int64_t>;
  const auto window = [](const Json& config) { return read(config).window; };
  const Json types = parse(R"(["full_attention","sliding_attention","full_attention",
                              "sliding_attention"])");
  const Json full =
      parse(R"(["full_attention","full_attention","full_attention","full_attention"])");
  EXPECT_EQ(window(small("llama").set("sliding_window", 8)), Windows(4, 0));
  EXPECT_EQ(window(small("llama").set("sliding_window", 0)), Windows(4, 0));
  EXPECT_EQ(window(small("mistral")), Windows(4, 4096));
  EXPECT_EQ(window(small("mistral").set("sliding_window", Json())), Windows(4, 0));
  EXPECT_EQ(window(small("mistral").set("sliding_window", 8)), Windows(4, 8));
  EXPECT_EQ(window(small("mistral").set("sliding_window", Json()).set("layer_types", full)),
            Windows(4, 0));
  for (const char* qwen : {"qwen2", "qwen3"}) {
    const Json base = small(qwen).set("sliding_window", 8).set("max_window_layers", 3);
    EXPECT_EQ(window(base), Windows(4, 0));
    EXPECT_EQ(window(Json(base).set("use_sliding_window", true)), (Windows{0, 0, 0, 8}));
    EXPECT_EQ(window(Json(base).set("use_sliding_window", true).set("max_window_layers", 0)),
              Windows(4, 8));
    EXPECT_EQ(window(Json(base).set("use_sliding_window", true).set("max_window_layers", 99)),
              Windows(4, 0));
    EXPECT_EQ(window(Json(base).set("use_sliding_window", true).set("layer_types", types)),
              (Windows{0, 8, 0, 8}));
    EXPECT_EQ(window(Json(base).set("use_sliding_window", true).set("sliding_window", Json())),
              Windows(4, 0));
    EXPECT_EQ(window(small(qwen).set("use_sliding_window", true).set("max_window_layers", 3)),
              (Windows{0, 0, 0, 4096}));
    EXPECT_EQ(window(Json(base).set("layer_types", full)), Windows(4, 0));
  }
}

struct Refusal {
  const char* model_type;
  const char* key;
  const char* value;  // JSON
  const char* word;
};

TEST(Architecture, RefusesByName) {
  const std::vector<Refusal> cases = {
      {"llama", "model_type", R"("gemma2")", "string \"gemma2\" found: not supported"},
      {"llama", "model_type", R"("LLaMA")", "not supported"},
      {"llama", "model_type", "null", "nothing found"},
      {"llama", "model_type", "7", "a string wanted"},
      {"llama", "architectures", R"(["LlamaForSequenceClassification"])", "not supported"},
      {"llama", "quantization_config", R"({"quant_method":"bitsandbytes"})", "not supported"},
      {"llama", "vision_config", "{}", "not supported"},
      {"llama", "attn_logit_softcapping", "50.0", "not supported"},
      {"llama", "final_logit_softcapping", "30.0", "not supported"},
      {"qwen3", "num_experts", "128", "not supported"},
      {"mistral", "num_local_experts", "8", "not supported"},
      {"qwen2", "moe_intermediate_size", "768", "not supported"},
      {"llama", "hidden_act", R"("gelu")", "string \"gelu\" found: not supported"},
      {"llama", "hidden_activation", R"("gelu_pytorch_tanh")", "not supported"},
      {"llama", "pretraining_tp", "2", "not supported"},
      {"llama", "attention_dropout", "0.1", "not supported"},
      {"llama", "partial_rotary_factor", "0.5", "not supported"},
      {"mistral", "attention_bias", "true", "not supported"},
      {"qwen2", "mlp_bias", "true", "not supported"},
      {"llama", "head_dim", "15", "15 found: not supported, an even number up to 256"},
      {"llama", "head_dim", "258", "258 found: not supported"},
      {"llama", "head_dim", "0", "integer 0 found"},
      {"qwen3", "head_dim", "null", "nothing found"},
      {"llama", "hidden_size", "131073", "integer 131073 found, an integer from 1 to 131072"},
      {"llama", "hidden_size", "0", "integer 0"},
      {"llama", "hidden_size", "-64", "integer -64"},
      {"llama", "hidden_size", "64.0", "number 64.0"},
      {"llama", "hidden_size", "9223372036854775808", "integer 9223372036854775808"},
      {"llama", "hidden_size", R"("64")", "string \"64\""},
      {"llama", "num_hidden_layers", "1025", "1 to 1024"},
      {"llama", "num_hidden_layers", "0", "1 to 1024"},
      {"llama", "num_attention_heads", "0", "integer 0"},
      {"llama", "num_attention_heads", "16385", "1 to 16384"},
      {"llama", "num_key_value_heads", "3", "3 found, a divisor of 4 heads wanted"},
      {"llama", "num_key_value_heads", "8", "8 found, a divisor of 4 heads wanted"},
      {"llama", "num_key_value_heads", "0", "integer 0"},
      {"llama", "intermediate_size", "1048577", "1 to 1048576"},
      {"llama", "vocab_size", "4194305", "1 to 4194304"},
      {"llama", "max_position_embeddings", "0", "integer 0"},
      {"llama", "rms_norm_eps", "0.0", "a number above 0 wanted"},
      {"llama", "rms_norm_eps", "-1e-5", "a number above 0 wanted"},
      {"llama", "rms_norm_eps", R"("1e-5")", "a number wanted"},
      {"llama", "rope_theta", "0", "a number above 0 wanted"},
      {"llama", "initializer_range", "-0.02", "from 0 to 1"},
      {"llama", "tie_word_embeddings", "1", "true or false"},
      {"llama", "attention_bias", R"("false")", "true or false"},
      {"mistral", "sliding_window", "0", "integer 0 found"},
      {"mistral", "sliding_window", "-1", "integer -1 found"},
      {"llama", "layer_types", R"(["full_attention"])", "1 entries found, 4 wanted"},
      {"qwen3", "layer_types", R"(["x","x","x","x"])", "string \"x\" found: not supported"},
      {"qwen3", "layer_types",
       R"(["sliding_attention","full_attention","full_attention","full_attention"])",
       "layer 0, which has no sliding window"},
      {"mistral", "layer_types",
       R"(["sliding_attention","full_attention","full_attention","full_attention"])",
       "layer 1, which has a sliding window"},
      {"llama", "rope_scaling", R"({"rope_type":"yarn"})", "string \"yarn\" found: not supported"},
      {"llama", "rope_scaling", R"({"type":"linear"})", "type: string \"linear\" found"},
      {"llama", "rope_scaling", R"({"type":"dynamic","rope_type":"default"})", "type"},
      {"qwen2", "rope_scaling", R"({"type":"default","mrope_section":[1,2]})",
       "mrope_section: array of 2 found: not supported"},
      {"llama", "rope_scaling", R"("llama3")", "an object wanted"},
      {"llama", "rope_parameters", R"({"full_attention":{"rope_theta":1.0}})",
       "full_attention: object of 1 found: not supported"},
      {"llama", "rope_parameters", R"({"partial_rotary_factor":0.5})", "partial_rotary_factor"},
      {"llama", "rope_parameters", R"({"rope_theta":-1.0})", "rope_theta"},
      {"llama", "rope_scaling", R"({"rope_type":"llama3"})", "factor: nothing found"},
      {"llama", "rope_scaling",
       R"({"rope_type":"llama3","factor":0.5,"low_freq_factor":1,"high_freq_factor":4})",
       "factor: 0.5 found, at least 1"},
      {"llama", "rope_scaling",
       R"({"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4})",
       "high_freq_factor: 4 found, more than low_freq_factor"},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(fmt::format("{} {} {}", c.model_type, c.key, c.value));
    expect_refused([&] { read(small(c.model_type).set(c.key, parse(c.value))); },
                   ExitCode::bad_file, {std::string("config.json: ") + c.key, c.word});
  }
  expect_refused([] { read(small("llama").set("head_dim", Json()).set("hidden_size", 66)); },
                 ExitCode::bad_file, {"hidden_size: 66 found, a multiple of 4 heads"});
}

TEST(Architecture, RefusesMissingAndMalformedFiles) {
  const TempDir dir;
  expect_refused([&] { read_architecture(dir / "none"); }, ExitCode::usage,
                 {"none: no such directory"});
  expect_refused([&] { read_architecture(dir.str()); }, ExitCode::bad_file,
                 {"config.json: no such file"});
  const auto refused = [&](const std::string& text, const std::string& word) {
    write_bytes(dir / "config.json", text);
    expect_refused([&] { read_architecture(dir.str()); }, ExitCode::bad_file,
                   {"config.json: ", word});
  };
  refused("", "byte");
  refused("[]", "array of 0 found, an object wanted");
  refused(R"({"model_type":"llama","model_type":"qwen2"})", "\"model_type\" found twice");
  refused(R"({"model_type":"llama"} x)", "byte");
  refused(R"({"model_type":"llama","rms_norm_eps":NaN})", "byte");
  refused(R"({"model_type":"llama","rms_norm_eps":1e999})", "byte");
  refused(std::string((1 << 20) + 1, ' '), "1048577 bytes found, at most 1048576");
}

// Names, shapes and the number of parameters are those of models saved by transformers.
TEST(Architecture, ExpectsTheTensorsOfRealFiles) {
  int n_models = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden_path(""))) {
    const std::string dir = (entry.path() / "model").string();
    if (!std::filesystem::exists(dir)) continue;
    SCOPED_TRACE(dir);
    const Architecture a = read_architecture(dir);
    const ModelFiles files(dir);
    std::set<std::string> expected;
    int64_t n_elem = 0;
    for (const TensorSpec& spec : expected_tensors(a)) {
      n_elem += files.at(spec.name, spec.shape).n_elem();
      expected.insert(spec.name);
    }
    EXPECT_EQ(n_elem, a.n_parameters());
    for (const std::string& name : files.names()) EXPECT_TRUE(expected.contains(name)) << name;
    ++n_models;
  }
  EXPECT_GE(n_models, 4);
}

TEST(Architecture, HeadOnlyWhenUntied) {
  const std::vector<TensorSpec> untied = expected_tensors(read(small("qwen3")));
  const std::vector<TensorSpec> tied =
      expected_tensors(read(small("qwen3").set("tie_word_embeddings", true)));
  EXPECT_EQ(untied.size(), tied.size() + 1);
  EXPECT_EQ(untied.back().name, "lm_head.weight");
  EXPECT_EQ(tied.back().name, "model.norm.weight");
  EXPECT_EQ(tied.front().name, "model.embed_tokens.weight");
}

}  // namespace
}  // namespace utrain
