// A copy of the golden llama that a case damages in one place, and all the cases: what is done to
// it, the exit code of DESIGN's table, a text of the message. Every input is sound but for the one
// fault; the run directory does not exist unless the case makes it.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/sha256.h"
#include "io/safetensors.h"
#include "io_files.h"
#include "places.h"
#include "token_files.h"

namespace utrain {

namespace fs = std::filesystem;

class Sandbox {
 public:
  Sandbox() {
    const fs::path golden = golden_path("llama");
    fs::copy(golden / "model", dir / "model");
    fs::copy(golden / "adapter_init", dir / "adapter");
    fs::copy(golden / "tokens.h5", dir / "tokens.h5");
    set("model.path", quoted("model"));
    set("data.train", quoted("tokens.h5"));
    set("data.seq_len", "64");
    set("train.max_steps", "1");
    set("run.dir", quoted("run"));
  }

  std::string quoted(const std::string& name) const { return fmt::format("\"{}\"", dir / name); }
  void set(const std::string& key, const std::string& value) { settings[key] = value; }
  void unset(const std::string& key) { settings.erase(key); }

  void rewrite(const std::string& name, const std::function<void(std::string&)>& change) {
    std::string bytes = read_bytes(dir / name);
    const std::string before = bytes;
    change(bytes);
    ASSERT(bytes != before);
    write_bytes(dir / name, bytes);
  }
  void replace(const std::string& name, const std::string& from, const std::string& to) {
    rewrite(name, [&](std::string& bytes) {
      const size_t at = bytes.find(from);
      ASSERT(at != std::string::npos);
      bytes.replace(at, from.size(), to);
    });
  }
  void cut(const std::string& name, size_t bytes) {
    rewrite(name, [&](std::string& text) { text.resize(bytes); });
  }
  // The header keeps its length where to is as long as from; else spaces fill it up.
  void replace_in_header(const std::string& name, const std::string& from, std::string to) {
    ASSERT(to.size() <= from.size());
    to.resize(from.size(), ' ');
    replace(name, from, to);
  }
  void remove(const std::string& name) { fs::remove_all(dir / name); }
  void go_on_from_adapter() { set("lora.init_from", quoted("adapter")); }

  void shard(const std::string& weight_map) {
    fs::rename(dir / "model/model.safetensors", dir / "model/a.safetensors");
    write_bytes(dir / "model/model.safetensors.index.json",
                fmt::format(R"({{"metadata": {{}}, "weight_map": {{{}}}}})", weight_map));
  }
  // A small sound token data set but for what change does; it replaces the golden one.
  void tokens(const std::function<void(TokenDataSet&)>& change, const test::StoredAs& stored = {}) {
    TokenDataSet data = test::make_token_data_set({12, 20, 16});
    change(data);
    test::write_token_data_set(dir / "tokens.h5", data, stored);
  }

  // The data tell the hash of one tokenizer.json, the model has the other.
  void made_with_tokenizer(const std::string& of_data, const std::string& of_model) {
    tokens([](TokenDataSet&) {});
    write_bytes(dir / "model/tokenizer.json", of_model);
    const std::string hash = sha256(of_data);
    const Hdf5Handle file(H5Fopen((dir / "tokens.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT),
                          H5Fclose);
    test::write_text_attribute(file.id(), "tokenizer_sha256", hash);
  }
  // Another embedding and head of n rows of zeros, which take no place on the disk.
  void widen_vocabulary(int64_t n) {
    replace("model/config.json", "\"vocab_size\": 320", fmt::format("\"vocab_size\": {}", n));
    std::string header;
    int64_t end = 0;
    {
      const SafetensorsFile weights(dir / "model/model.safetensors");
      for (const auto& [name, tensor] : weights.tensors()) {
        std::vector<int64_t> shape = tensor.shape;
        if (shape[0] == 320) shape[0] = n;
        int64_t bytes = 4;
        for (const int64_t size : shape) bytes *= size;
        header +=
            fmt::format(R"({}"{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})",
                        header.empty() ? "{" : ",", name, text_of_shape(shape), end, end + bytes);
        end += bytes;
      }
    }
    header += "}";
    write_bytes(dir / "model/model.safetensors", safetensors_bytes(header, 0));
    fs::resize_file(dir / "model/model.safetensors",
                    8 + header.size() + static_cast<uintmax_t>(end));
  }

  // Writes input.toml; the arguments of utrain.
  std::vector<std::string> arguments() const {
    std::map<std::string, std::string> sections;
    for (const auto& [key, value] : settings) {
      const size_t dot = key.find('.');
      sections[key.substr(0, dot)] += fmt::format("{} = {}\n", key.substr(dot + 1), value);
    }
    std::string text;
    for (const auto& [section, lines] : sections) text += fmt::format("[{}]\n{}", section, lines);
    if (!input.empty()) text = input;
    write_bytes(dir / "input.toml", text);
    std::vector<std::string> words = with_input ? std::vector{dir / "input.toml"} : flags;
    if (with_input) words.insert(words.end(), flags.begin(), flags.end());
    return words;
  }

  TempDir dir;
  std::map<std::string, std::string> settings;  // section.key -> TOML
  std::string input;                            // the whole text instead, where not empty
  std::vector<std::string> flags;
  bool with_input = true;
};

struct Refusal {
  const char* name;
  int exit_code;
  std::string word;  // in one of the error lines
  std::function<void(Sandbox&)> damage;
  size_t n_lines = 1;
};

// How GoogleTest names it in a failure.
inline void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.name;
}

inline Refusal wrong_setting(const char* name, const char* key, const char* value,
                             const std::string& word) {
  return {name, 2, word, [=](Sandbox& s) { s.set(key, value); }};
}
inline Refusal wrong_flags(const char* name, const std::vector<std::string>& flags,
                           const std::string& word) {
  return {name, 2, word, [=](Sandbox& s) { s.flags = flags; }};
}
inline Refusal wrong_config(const char* name, const char* from, const char* to,
                            const std::string& word) {
  return {name, 3, word, [=](Sandbox& s) { s.replace("model/config.json", from, to); }};
}
inline Refusal wrong_header(const char* name, const char* from, const char* to,
                            const std::string& word) {
  return {name, 3, word,
          [=](Sandbox& s) { s.replace_in_header("model/model.safetensors", from, to); }};
}
inline Refusal wrong_adapter(const char* name, const char* from, const char* to,
                             const std::string& word) {
  return {name, 3, word, [=](Sandbox& s) {
            s.go_on_from_adapter();
            s.replace("adapter/adapter_config.json", from, to);
          }};
}
inline Refusal wrong_tokens(const char* name, const std::string& word,
                            const std::function<void(TokenDataSet&)>& change) {
  return {name, 3, word, [=](Sandbox& s) { s.tokens(change); }};
}

inline std::vector<Refusal> refusals_of_input() {
  return {
      {"TomlSyntax", 2, "input.toml:1:", [](Sandbox& s) { s.input = "[model"; }},
      {"TomlDuplicateKey", 2, ":3:", [](Sandbox& s) { s.input = "[lora]\nr = 1\nr = 2\n"; }},
      {"TomlThatIsBinary", 2, "input.toml:1:1",
       [](Sandbox& s) { s.input = std::string("\x89HDF\r\n\x1a\n\0\0\0", 11); }},
      {"TomlTooLarge", 2, "64 KiB", [](Sandbox& s) { s.input = std::string(70000, '#'); }},
      wrong_setting("UnknownKey", "lora.rank", "8", "did you mean \"lora.r\"?"),
      wrong_setting("UnknownSection", "optimizer.lr", "1", "optimizer"),
      wrong_setting("WrongType", "lora.r", "\"8\"", "wanted an integer"),
      wrong_setting("OutOfRange", "lora.r", "0", "found 0"),
      wrong_setting("NotFinite", "train.lr", "nan", "found nan"),
      wrong_setting("TargetModules", "lora.target_modules", "[\"q_porj\"]", "q_proj"),
      wrong_setting("NoSuchModel", "model.path", "\"/no/such\"", "does not exist"),
      wrong_setting("NoSuchData", "data.train", "\"/no/such.h5\"", "does not exist"),
      wrong_setting("NoSuchAdapter", "lora.init_from", "\"/no/such\"", "does not exist"),
      wrong_setting("BothLengths", "train.epochs", "1", "exactly one"),
      {"TooManyEpochs", 2, "epochs",
       [](Sandbox& s) { s.unset("train.max_steps"), s.set("train.epochs", "1e300"); }},
      {"NeitherLength", 2, "exactly one", [](Sandbox& s) { s.unset("train.max_steps"); }},
      {"BothBatchSizes", 2, "at most one",
       [](Sandbox& s) {
         s.set("train.global_batch_size", "4"), s.set("train.gradient_accumulation_steps", "2");
       }},
      {"NoRunDirectory", 2, "run.dir: missing", [](Sandbox& s) { s.unset("run.dir"); }},
      {"ThreeProblemsAtOnce", 2, "train.lr",
       [](Sandbox& s) {
         s.set("lora.r", "0"), s.set("train.lr", "-1"), s.set("data.packing", "1");
       },
       3},
      wrong_setting("MicroBatchTooLarge", "train.micro_batch_size", "9000000000", "found"),
      wrong_setting("LaterQuantize", "model.quantize", "\"nf4\"", "not in this version"),
      wrong_setting("UnknownStrategy", "parallel.strategy", "\"zero4\"", "\"zero3\""),
      {"NcclOnTheCpu", 2, "\"nccl\" is not available on the CPU",
       [](Sandbox& s) {
         s.set("run.backend", "\"cpu\""), s.set("parallel.collectives", "\"nccl\"");
       }},
      wrong_setting("GpuMemoryNegative", "run.gpu_memory_gb", "-1", "found -1"),
      wrong_setting("UnknownChange", "checkpoint.allow_changes", "[\"train.lrr\"]",
                    "did you mean \"train.lr\"?"),
      wrong_setting("ChangeOfShape", "checkpoint.allow_changes", "[\"lora.r\"]", "found"),
      {"NoSuchCheckpoint", 5, "no/such/step-00000001",
       [](Sandbox& s) { s.set("checkpoint.resume", "\"no/such/step-00000001\""); }},
      {"FullWithLora", 2, "lora.r: found beside train.method = \"full\"",
       [](Sandbox& s) { s.set("train.method", "\"full\""), s.set("lora.r", "8"); }},
      wrong_flags("PlanOfNoRanks", {"--plan", "--ranks=0"}, "--ranks: found \"0\""),
      wrong_flags("UnknownFlag", {"--chekc"}, "did you mean --check?"),
      wrong_flags("UnknownOverride", {"--lora.rank=8"}, "did you mean \"lora.r\"?"),
      wrong_flags("OverrideWithoutValue", {"--lora.r"}, "has no value"),
      wrong_flags("WrongOverride", {"--lora.r=eight"}, "wanted an integer"),
      wrong_flags("WrongDryRun", {"--dry-run", "x"}, "--dry-run"),
      wrong_flags("TwoCommands", {"--check", "--dump=x"}, "cannot be combined"),
      wrong_flags("TwoInputs", {"second.toml"}, "second"),
      {"NoInput", 2, "no input file", [](Sandbox& s) { s.with_input = false; }},
      {"NoSuchInput", 2, "does not exist",
       [](Sandbox& s) { s.with_input = false, s.flags = {s.dir / "none.toml"}; }},
      {"InputIsADirectory", 2, "is a directory",
       [](Sandbox& s) { s.with_input = false, s.flags = {s.dir / "model"}; }},
  };
}

inline std::vector<Refusal> refusals_of_model() {
  const char* weights = "model/model.safetensors";
  std::vector<Refusal> cases = {
      {"ConfigMissing", 3, "config.json", [](Sandbox& s) { s.remove("model/config.json"); }},
      {"ConfigTruncated", 3, "config.json", [](Sandbox& s) { s.cut("model/config.json", 300); }},
      {"ConfigEmpty", 3, "config.json", [](Sandbox& s) { s.cut("model/config.json", 0); }},
      {"ConfigTooLarge", 3, "bytes",
       [](Sandbox& s) {
         s.rewrite("model/config.json", [](std::string& t) { t.resize(2 << 20, ' '); });
       }},
      wrong_config("ConfigArchitecture", "\"model_type\": \"llama\"", "\"model_type\": \"gemma2\"",
                   "not supported"),
      wrong_config("ConfigQuantised", "\"use_cache\"",
                   "\"quantization_config\": {\"bits\": 4}, \"use_cache\"", "not supported"),
      wrong_config("ConfigRope", "\"rope_type\": \"llama3\"", "\"rope_type\": \"yarn\"",
                   "not supported"),
      wrong_config("ConfigBareNaN", "1e-05", "NaN", "config.json"),
      wrong_config("ConfigEpsInfinite", "1e-05", "1e999", "config.json"),
      wrong_config("ConfigEpsZero", "1e-05", "0", "rms_norm_eps"),
      wrong_config("ConfigHiddenHuge", "\"hidden_size\": 64",
                   "\"hidden_size\": 4611686018427387904", "hidden_size"),
      wrong_config("ConfigSizeAsFloat", "\"vocab_size\": 320", "\"vocab_size\": 3.2e2",
                   "vocab_size"),
      wrong_config("ConfigNoLayer", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0",
                   "num_hidden_layers"),
      wrong_config("ConfigHeads", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3",
                   "num_key_value_heads"),
      wrong_config("ConfigDuplicateKey", "\"use_cache\"", "\"vocab_size\": 1, \"use_cache\"",
                   "vocab_size"),
      wrong_config("ConfigMoreLayers", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1024",
                   "model.layers.2"),
      wrong_config("ConfigOtherWidth", "\"intermediate_size\": 176", "\"intermediate_size\": 175",
                   "[176, 64]"),
      {"WeightsMissing", 3, "no weights", [=](Sandbox& s) { s.remove(weights); }},
      {"WeightsPickled", 3, "pickled",
       [=](Sandbox& s) { fs::rename(s.dir / weights, s.dir / "model/pytorch_model.bin"); }},
      {"WeightsTail", 3, "safetensors",
       [=](Sandbox& s) { s.rewrite(weights, [](std::string& t) { t += "tail"; }); }},
      {"WeightsHeaderLengthHuge", 3, "safetensors",
       [=](Sandbox& s) { s.rewrite(weights, [](std::string& t) { t[7] = '\x7f'; }); }},
      {"WeightsHeaderLengthOff", 3, "safetensors",
       [=](Sandbox& s) { s.rewrite(weights, [](std::string& t) { t[0] ^= 1; }); }},
      wrong_header("WeightsOverlap", "\"data_offsets\":[81920,163840]",
                   "\"data_offsets\":[0,81920]", "offset"),
      wrong_header("WeightsFallingOffsets", "\"data_offsets\":[81920,163840]",
                   "\"data_offsets\":[163840,0]", "offset"),
      wrong_header("WeightsDtypeUnknown", "\"F32\"", "\"Q4\"", "Q4"),
      wrong_header("WeightsDtypeInteger", "\"F32\"", "\"I32\"", "I32"),
      wrong_header("WeightsShape", "[320,64]", "[64,320]", "[320, 64]"),
      wrong_header("WeightsShapeOverflows", "\"shape\":[320,64]", "\"shape\":[9e9,9]",
                   "safetensors"),
      wrong_header("WeightsTensorMissing", "model.norm.weight", "model.nrom.weight",
                   "model.norm.weight"),
      {"IndexNotJson", 3, "index.json", [](Sandbox& s) { s.shard("\"a\""); }},
      {"IndexShardMissing", 3, "not there",
       [](Sandbox& s) { s.shard(R"("model.norm.weight": "b.safetensors")"); }},
      {"IndexTraversal", 3, "plain file name",
       [](Sandbox& s) { s.shard(R"("model.norm.weight": "../model/a.safetensors")"); }},
      {"IndexTensorElsewhere", 3, "is not in it",
       [](Sandbox& s) { s.shard(R"("model.mron.weight": "a.safetensors")"); }},
      {"IndexLinkOutside", 3, "resolves to",
       [](Sandbox& s) {
         s.shard(R"("model.norm.weight": "a.safetensors")");
         fs::rename(s.dir / "model/a.safetensors", s.dir / "a.safetensors");
         fs::create_symlink(s.dir / "a.safetensors", s.dir / "model/a.safetensors");
       }},
      {"IndexIncomplete", 3, "is missing, config.json asks for it",
       [](Sandbox& s) { s.shard(R"("model.norm.weight": "a.safetensors")"); }},
  };
  const std::vector<std::pair<const char*, size_t>> cuts = {
      {"WeightsEmpty", 0},         {"WeightsCutInLength", 7},  {"WeightsCutBeforeHeader", 8},
      {"WeightsCutInHeader", 900}, {"WeightsCutInData", 9000}, {"WeightsCutOneByte", 535903}};
  for (const auto& [name, bytes] : cuts) {
    cases.push_back({name, 3, "safetensors", [=, n = bytes](Sandbox& s) { s.cut(weights, n); }});
  }
  return cases;
}

inline std::vector<Refusal> refusals_of_data() {
  return {
      {"AdapterRank", 2, "lora.r",
       [](Sandbox& s) { s.go_on_from_adapter(), s.set("lora.r", "4"); }},
      {"AdapterIsAFile", 2, "PEFT adapter directory",
       [](Sandbox& s) { s.set("lora.init_from", s.quoted("tokens.h5")); }},
      {"AdapterWithoutConfig", 3, "adapter_config.json",
       [](Sandbox& s) { s.set("lora.init_from", s.quoted("model")); }},
      wrong_adapter("AdapterDora", "\"use_dora\": false", "\"use_dora\": true", "use_dora"),
      wrong_adapter("AdapterPattern", "\"target_modules\": [", "\"target_modules\": [\"lm_head\",",
                    "lm_head"),
      wrong_adapter("AdapterOtherRank", "\"r\": 8", "\"r\": 9", "wanted floats of shape [9, "),
      wrong_adapter("AdapterTruncatedConfig", "\"use_rslora\"", "\"use_rslora", "adapter_config"),
      {"AdapterTensorMissing", 3, "no tensor",
       [](Sandbox& s) {
         s.go_on_from_adapter();
         s.replace("adapter/adapter_model.safetensors", "layers.1.mlp.up_proj.lora_B",
                   "layers.1.mlp.up_porj.lora_B");
       }},
      {"AdapterNaN", 3, "not finite",
       [](Sandbox& s) {
         s.go_on_from_adapter();
         s.rewrite("adapter/adapter_model.safetensors", [](std::string& t) {
           t.replace(t.size() - 4, 4, std::string("\0\0\xc0\x7f", 4));
         });
       }},
      {"AdapterTruncated", 3, "adapter_model",
       [](Sandbox& s) {
         s.go_on_from_adapter(), s.cut("adapter/adapter_model.safetensors", 5000);
       }},

      {"TokensEmptyFile", 3, "tokens.h5", [](Sandbox& s) { s.cut("tokens.h5", 0); }},
      {"TokensTruncated", 3, "tokens.h5", [](Sandbox& s) { s.cut("tokens.h5", 6000); }},
      {"TokensAsText", 3, "tokens.h5",
       [](Sandbox& s) { write_bytes(s.dir / "tokens.h5", "{\"text\": \"hello\"}\n"); }},
      {"TokensIsADirectory", 3, "regular file",
       [](Sandbox& s) { s.set("data.train", s.quoted("model")); }},
      wrong_tokens("TokensOfAnotherModel", "vocab_size",
                   [](TokenDataSet& d) { d.vocab_size = 400; }),
      wrong_tokens("TokenBeyondVocabulary", "/tokens", [](TokenDataSet& d) { d.tokens[5] = 100; }),
      wrong_tokens("TokenNegative", "/tokens", [](TokenDataSet& d) { d.tokens[5] = -1; }),
      wrong_tokens("OffsetsFall", "/offsets", [](TokenDataSet& d) { d.offsets[1] = 40; }),
      wrong_tokens("OffsetsEndEarly", "/offsets", [](TokenDataSet& d) { --d.offsets.back(); }),
      wrong_tokens("OffsetsStartLate", "/offsets", [](TokenDataSet& d) { d.offsets[0] = 1; }),
      wrong_tokens("MaskTwo", "/loss_mask", [](TokenDataSet& d) { d.loss_mask[7] = 2; }),
      wrong_tokens("MaskShort", "/loss_mask", [](TokenDataSet& d) { d.loss_mask.pop_back(); }),
      wrong_tokens("NoDocument", "/offsets", [](TokenDataSet& d) { d.offsets = {0}; }),
      wrong_tokens("NoTarget", "target",
                   [](TokenDataSet& d) { d.loss_mask.assign(d.loss_mask.size(), 0); }),
      {"TokensAsFloats", 3, "floating-point",
       [](Sandbox& s) { s.tokens([](TokenDataSet&) {}, {.type = H5T_IEEE_F32LE}); }},
      {"DatasetMissing", 3, "/tokens",
       [](Sandbox& s) {
         test::TokenFileWriter file(s.dir / "tokens.h5");
         file.attribute("format_version", 1), file.attribute("vocab_size", 100);
       }},
      {"AttributeMissing", 3, "vocab_size",
       [](Sandbox& s) { test::TokenFileWriter file(s.dir / "tokens.h5"); }},
      {"EvalDamaged", 3, "eval.h5",
       [](Sandbox& s) {
         write_bytes(s.dir / "eval.h5", "no HDF5");
         s.set("data.eval", s.quoted("eval.h5"));
       }},
      {"TokenizerOfAnotherModel", 3, "made with another tokenizer",
       [](Sandbox& s) { s.made_with_tokenizer("{}", "[]"); }},
      {"TokenizerOfEvalData", 3, "eval.h5: attribute tokenizer_sha256",
       [](Sandbox& s) {
         s.made_with_tokenizer("{}", "[]");
         fs::rename(s.dir / "tokens.h5", s.dir / "eval.h5");
         s.set("data.eval", s.quoted("eval.h5"));
         s.tokens([](TokenDataSet&) {});
       }},
      {"DocumentsTooLong", 2, "data.seq_len", [](Sandbox& s) { s.set("data.seq_len", "16"); }},
  };
}

}  // namespace utrain
