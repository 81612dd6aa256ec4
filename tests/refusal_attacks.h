// Files made to do harm, end to end: every header, index, configuration and data set that a parser
// of its kind has been seen to trip over. They belong to the full set of refusal_test.
#pragma once

#include <sys/stat.h>

#include "bad_token_files.h"
#include "refusal_cases.h"

namespace utrain {

inline constexpr const char* kWeights = "model/model.safetensors";

inline std::string tensor_header(const std::string& rest) {
  return "{\"model.norm.weight\":" + rest + "}";
}

// model.safetensors from its header alone.
inline std::vector<Refusal> attacks_on_weights() {
  const std::string one = R"({"dtype":"F32","shape":[64],"data_offsets":[0,256]})";
  std::string zeros = "0";
  for (int i = 0; i < 6'000'000; ++i) zeros += ",0";
  std::string many = "{";
  for (int i = 0; i < 110'000; ++i)
    many += fmt::format(R"("{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},)", i);
  many.back() = '}';
  const std::vector<std::tuple<const char*, std::string, size_t, std::string>> headers = {
      {"NoTensor", "{}", 0, "is missing, config.json asks for it"},
      {"ArrayInstead", "[]", 0, "'{' wanted"},
      {"SpaceFirst", " {}", 0, "'{' wanted"},
      {"ByteOrderMark", "\xEF\xBB\xBF{}", 0, "'{' wanted"},
      {"Nul", std::string("{\0}", 3), 0, "NUL"},
      {"NotUtf8", "{\"\xff\":1}", 0, "not valid JSON"},
      {"TwoValues", "{}{}", 0, "not valid JSON"},
      {"CutKey", "{\"a", 0, "not valid JSON"},
      {"ATensorTwice", "{\"a\":" + one + ",\"a\":" + one + "}", 256, "found twice"},
      {"AKeyTwice", tensor_header(R"({"dtype":"F32","dtype":"F32"})"), 0, "found twice"},
      {"Deep", "{\"a\":" + std::string(100000, '[') + "}", 0, "nested deeper"},
      {"AText", tensor_header("\"F32\""), 0, "an object wanted"},
      {"UnknownKey", tensor_header(R"({"dtype":"F32","sparse":1})"), 0, "unknown key"},
      {"NoDtype", tensor_header(R"({"shape":[],"data_offsets":[0,4]})"), 4, "dtype is missing"},
      {"NoShape", tensor_header(R"({"dtype":"F32","data_offsets":[0,4]})"), 4, "shape is missing"},
      {"NoOffsets", tensor_header(R"({"dtype":"F32","shape":[]})"), 4, "data_offsets is missing"},
      {"DtypeNumber", tensor_header(R"({"dtype":4,"shape":[],"data_offsets":[0,4]})"), 4, "dtype"},
      {"NineDimensions",
       tensor_header(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]})"), 1,
       "9 dimensions"},
      {"ThreeOffsets", tensor_header(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1,1]})"), 1,
       "3 numbers"},
      {"NegativeSize", tensor_header(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,1]})"), 1,
       "integer -1"},
      {"NegativeOffset", tensor_header(R"({"dtype":"U8","shape":[1],"data_offsets":[-1,0]})"), 1,
       "integer -1"},
      {"SizeAsFloat", tensor_header(R"({"dtype":"U8","shape":[1.0],"data_offsets":[0,1]})"), 1,
       "number 1.0"},
      {"SizeAsPower", tensor_header(R"({"dtype":"U8","shape":[1e0],"data_offsets":[0,1]})"), 1,
       "number 1.0"},
      {"SizeAbove2To63",
       tensor_header(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]})"), 1,
       "9223372036854775808"},
      {"ProductOverflows",
       tensor_header(R"({"dtype":"U8","shape":[4294967296,4294967297],"data_offsets":[0,0]})"), 0,
       "larger than 2^63 bits"},
      {"BitsOverflow",
       tensor_header(R"({"dtype":"F64","shape":[288230376151711744],"data_offsets":[0,0]})"), 0,
       "larger than 2^63 bits"},
      {"HalfAByte", tensor_header(R"({"dtype":"F4","shape":[3],"data_offsets":[0,1]})"), 1,
       "whole bytes"},
      {"TooFewBytes", tensor_header(R"({"dtype":"F32","shape":[64],"data_offsets":[0,64]})"), 64,
       "64 bytes found, 256 wanted"},
      {"BeyondTheEnd", tensor_header(one), 255, "a range inside 255 bytes"},
      {"HoleAtTheStart", tensor_header(R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})"), 2,
       "(hole)"},
      {"TailAfterTheLast", tensor_header(one), 257, "after the last tensor"},
      {"MetadataNumber", R"({"__metadata__":{"a":1}})", 0, "strings wanted"},
      {"MetadataArray", R"({"__metadata__":[]})", 0, "an object wanted"},
      {"LongName", "{\"" + std::string(600, 'n') + "\":" + one + "}", 256, "name of 600 bytes"},
      {"TerminalName", R"({"\u001b[2J":)" + one + "}", 256, "control character"},
      {"ManyNumbers", tensor_header("{\"shape\":[" + zeros + "]}"), 0, "JSON values found"},
      {"ManyTensors", many, 0, "110000 tensors"},
  };
  std::vector<Refusal> cases;
  for (const auto& [name, header, n_data, word] : headers) {
    cases.push_back({name, 3, word, [header = header, n = n_data](Sandbox& s) {
                       write_bytes(s.dir / kWeights, safetensors_bytes(header, n));
                     }});
  }
  const std::vector<std::tuple<const char*, std::string, std::string>> files = {
      {"GitLfsPointer", "version https://git-lfs.github.com/spec/v1\nsize 9\n", "git lfs pull"},
      {"LengthAboveTheBound", little_endian(100'000'001) + "{}", "100000001 bytes"},
      {"Length2To63", little_endian(uint64_t{1} << 63) + "{}", "9223372036854775808 bytes"},
      {"LengthPastTheEnd", little_endian(3) + "{}", "header of 3 bytes found in a file of 10"},
      {"LengthZero", little_endian(0), "'{' wanted"},
  };
  for (const auto& [name, bytes, word] : files) {
    cases.push_back(
        {name, 3, word, [bytes = bytes](Sandbox& s) { write_bytes(s.dir / kWeights, bytes); }});
  }
  cases.push_back({"WeightsDirectory", 3, "not a regular file",
                   [](Sandbox& s) { s.remove(kWeights), fs::create_directory(s.dir / kWeights); }});
  cases.push_back({"WeightsPipe", 3, "not a regular file", [](Sandbox& s) {
                     s.remove(kWeights), ::mkfifo((s.dir / kWeights).c_str(), 0600);
                   }});
  cases.push_back({"WeightsDevice", 3, "not a regular file", [](Sandbox& s) {
                     s.remove(kWeights), fs::create_symlink("/dev/zero", s.dir / kWeights);
                   }});
  return cases;
}

// The name of the one shard, or the whole index where it starts with '{' or '['.
inline std::vector<Refusal> attacks_on_index() {
  std::string shards = "{\"weight_map\":{";
  for (int i = 0; i < 5000; ++i) shards += fmt::format("\"t{0}\":\"s{0}.safetensors\",", i);
  shards.back() = '}';
  std::string deep = "{\"weight_map\":" + std::string(100000, '[');
  std::string numbers = "{\"a\":[0";
  for (int i = 0; i < 6'000'000; ++i) numbers += ",0";
  const std::vector<std::tuple<const char*, std::string, std::string>> texts = {
      {"Parent", "\"../a.safetensors\"", "plain file name"},
      {"ParentInside", "\"x/../a.safetensors\"", "plain file name"},
      {"Absolute", "\"/etc/passwd\"", "plain file name"},
      {"AbsoluteWeights", "\"/tmp/a.safetensors\"", "plain file name"},
      {"BackSlash", "\"..\\\\a.safetensors\"", "plain file name"},
      {"ParentEscaped", R"("\u002e\u002e\u002fa.safetensors")", "plain file name"},
      {"NulInName", R"("a.safetensors\u0000.safetensors")", "plain file name"},
      {"NewLineInName", R"("a\n.safetensors")", "plain file name"},
      {"ShellInName", "\"$(id).safetensors\"", "plain file name"},
      {"SuffixAlone", "\".safetensors\"", "plain file name"},
      {"OtherSuffix", "\"pytorch_model.bin\"", "plain file name"},
      {"NameTooLong", "\"" + std::string(300, 'a') + ".safetensors\"", "plain file name"},
      {"NumberInstead", "7", "plain file name"},
      {"ListInstead", "[\"a.safetensors\"]", "plain file name"},
      {"NoMap", "{\"metadata\":{}}", "weight_map"},
      {"MapIsAList", "{\"weight_map\":[]}", "weight_map"},
      {"MapIsEmpty", "{\"weight_map\":{}}", "0 files named"},
      {"AList", "[1]", "an object wanted"},
      {"AKeyTwice", R"({"weight_map":{"a":"a.safetensors","a":"a.safetensors"}})", "found twice"},
      {"ManyShards", shards + "}", "5000 files named"},
      {"Deep", deep, "nested deeper"},
      {"ManyNumbers", numbers + "]}", "JSON values found"},
  };
  std::vector<Refusal> cases;
  for (const auto& [name, text, word] : texts) {
    cases.push_back({name, 3, word, [text = text](Sandbox& s) {
                       const bool whole = text[0] == '{' || text == "[1]";
                       s.shard("\"model.norm.weight\":" + (whole ? "0" : text));
                       if (whole) write_bytes(s.dir / "model/model.safetensors.index.json", text);
                     }});
  }
  const auto shard_as = [&](const char* name, const std::string& word,
                            const std::function<void(const std::string& shard)>& make) {
    cases.push_back({name, 3, word, [=](Sandbox& s) {
                       s.shard(R"("model.norm.weight": "b.safetensors")");
                       make(s.dir / "model/b.safetensors");
                     }});
  };
  shard_as("ShardIsADirectory", "not a regular file", [](auto& p) { fs::create_directory(p); });
  shard_as("ShardIsAPipe", "not a regular file", [](auto& p) { ::mkfifo(p.c_str(), 0600); });
  shard_as("ShardLinksToItself", "not there", [](auto& p) { fs::create_symlink(p, p); });
  shard_as("ShardLinksNowhere", "not there", [](auto& p) { fs::create_symlink("/no/such", p); });
  shard_as("ShardLinksToADevice", "resolves to",
           [](auto& p) { fs::create_symlink("/dev/zero", p); });
  return cases;
}

inline std::vector<Refusal> attacks_on_config() {
  const std::vector<std::tuple<const char*, const char*, const char*, const char*>> changes = {
      {"NoHidden", "\"hidden_size\": 64", "\"hidden_size\": 0", "hidden_size"},
      {"HiddenNegative", "\"hidden_size\": 64", "\"hidden_size\": -64", "hidden_size"},
      {"HiddenText", "\"hidden_size\": 64", "\"hidden_size\": \"64\"", "hidden_size"},
      {"HiddenAbove", "\"hidden_size\": 64", "\"hidden_size\": 131073", "hidden_size"},
      {"HiddenAbove2To64", "\"hidden_size\": 64", "\"hidden_size\": 1e30", "hidden_size"},
      {"VocabAbove", "\"vocab_size\": 320", "\"vocab_size\": 4194305", "vocab_size"},
      {"VocabOther", "\"vocab_size\": 320", "\"vocab_size\": 321", "[321, 64]"},
      {"LayersAbove", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1025", "num_hidden"},
      {"NoHeads", "\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "num_attention"},
      {"HeadsDoNotDivide", "\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "num_"},
      {"NoKvHeads", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 0", "num_key_value"},
      {"MlpAbove", "\"intermediate_size\": 176", "\"intermediate_size\": 1048577", "intermediate"},
      {"EpsText", "1e-05", "\"1e-05\"", "rms_norm_eps"},
      {"EpsNegative", "1e-05", "-1e-05", "rms_norm_eps"},
      {"ModelTypeNull", "\"model_type\": \"llama\"", "\"model_type\": null", "model_type"},
      {"ModelTypeNumber", "\"model_type\": \"llama\"", "\"model_type\": 1", "model_type"},
      {"ModelTypeTerminal", "\"model_type\": \"llama\"", R"("model_type": "\u001b[2J\u007f")",
       "\\u001b[2J\\u007f"},
      {"Classifier", "ForCausalLM", "ForSequenceClassification", "architectures"},
      {"Gelu", "\"silu\"", "\"gelu\"", "hidden_act"},
      {"Experts", "\"use_cache\"", "\"num_local_experts\": 8, \"use_cache\"", "num_local_experts"},
      {"SoftCap", "\"use_cache\"", "\"attn_logit_softcapping\": 50.0, \"use_cache\"", "softcap"},
      {"TextConfig", "\"use_cache\"", "\"text_config\": {\"a\": 1}, \"use_cache\"", "text_config"},
      {"PartialRotary", "\"use_cache\"", "\"partial_rotary_factor\": 0.5, \"use_cache\"",
       "partial_rotary_factor"},
      {"OddHeadDim", "\"use_cache\"", "\"head_dim\": 15, \"_\"", "head_dim"},
      {"Range", "\"initializer_range\": 0.02", "\"initializer_range\": 2", "initializer_range"},
      {"LayerTypes", "\"use_cache\"", "\"layer_types\": [\"full_attention\"], \"use_cache\"",
       "layer_types"},
      {"LayerTypeUnknown", "\"use_cache\"",
       "\"layer_types\": [\"linear_attention\", \"full_attention\"], \"use_cache\"", "layer_types"},
      {"TiedText", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": \"no\"", "tie_word"},
  };
  std::vector<Refusal> cases;
  for (const auto& [name, from, to, word] : changes)
    cases.push_back(wrong_config(name, from, to, word));
  const std::vector<std::tuple<const char*, std::string, std::string>> files = {
      {"AList", "[]", "an object wanted"},
      {"ANumber", "7", "an object wanted"},
      {"ByteOrderMark", "\xEF\xBB\xBF{}", "byte order mark"},
      {"Utf16", std::string("{\0\"\0", 4), "NUL"},
      {"Deep", std::string(500000, '['), "nested deeper"},
      {"ManyKeys", "{\"a\":[" + std::string(900000, ' ') + "1,]}", "not valid JSON"},
      {"Trailing", "{} x", "not valid JSON"},
      {"NoModelType", "{}", "model_type"},
      {"LoneSurrogate", R"({"model_type":"\ud800"})", "not valid JSON"},
  };
  for (const auto& [name, text, word] : files) {
    cases.push_back({name, 3, word, [text = text](Sandbox& s) {
                       write_bytes(s.dir / "model/config.json", text);
                     }});
  }
  cases.push_back({"ConfigPipe", 3, "not a regular file", [](Sandbox& s) {
                     s.remove("model/config.json");
                     ::mkfifo((s.dir / "model/config.json").c_str(), 0600);
                   }});
  return cases;
}

inline std::vector<Refusal> attacks_on_input() {
  const auto text = [](const char* name, const std::string& word, const std::string& toml) {
    return Refusal{name, 2, word, [=](Sandbox& s) { s.input = toml; }};
  };
  std::vector<Refusal> cases = {
      text("TomlNul", "input.toml:1:", std::string("a = 1\0", 6)),
      text("TomlNotUtf8", "input.toml:1:", "[model]\xff\n"),
      text("TomlDots", "dots", "a" + std::string(20000, '.') + "a = 1"),
      text("TomlDeep", "input.toml:1:", "x = " + std::string(30000, '[')),
      text("TomlDeepTables", "input.toml:1:", "x = {a=" + std::string(20000, '{')),
      {"TomlLongKey", 2, "unknown key",
       [](Sandbox& s) { s.input = "[model]\n" + std::string(60000, 'k') + " = 1"; },
       5},  // and what is missing
      {"LatinLetterOutsideAString", 2,
       "input.toml:2:", [](Sandbox& s) { s.input = "[model]\npath = \xc3\xa9\n"; }},
      wrong_setting("TwoTo63", "lora.r", "9223372036854775808", "input.toml:"),
      wrong_setting("ADate", "train.lr", "1979-05-27", "a date or time"),
      wrong_setting("ATable", "train.lr", "{ a = 1 }", "a table"),
      wrong_setting("ListOfLists", "lora.target_modules", "[[\"q_proj\"]]", "target_modules"),
      wrong_setting("NoTarget", "lora.target_modules", "[]", "target_modules"),
      wrong_setting("OneBeta", "train.betas", "[0.9]", "train.betas"),
      wrong_setting("BetaOne", "train.betas", "[0.9, 1.0]", "train.betas"),
      wrong_setting("Infinite", "lora.alpha", "inf", "lora.alpha"),
      wrong_setting("SeqLenHuge", "data.seq_len", "1099511627776", "data.seq_len"),
      wrong_setting("NoBatch", "train.global_batch_size", "0", "train.global_batch_size"),
      wrong_setting("TerminalInPath", "data.train", R"("\u001b[2J")", "data.train"),
      wrong_setting("ModelIsAFile", "model.path", "\"/etc/passwd\"", "/etc/passwd"),
      wrong_setting("RunDirEmpty", "run.dir", "\"\"", "run.dir"),
      wrong_flags("OverrideOfTwoKeys", {"--train.lr=1\ntrain.eps=2"}, "train.lr"),
      wrong_flags("OverrideNotUtf8", {"--run.dir=\xff"}, "not UTF-8"),
      wrong_flags("OverrideTwice", {"--lora.r=4", "--lora.r=8"}, "second time"),
  };
  return cases;
}

inline std::vector<Refusal> attacks_on_data() {
  std::vector<Refusal> cases;
  for (const test::BadTokenFile& bad : test::bad_token_files()) {
    cases.push_back({bad.name, 3, bad.what, [make = bad.make](Sandbox& s) {
                       s.remove("tokens.h5");
                       make(s.dir / "tokens.h5");
                     }});
  }
  const std::vector<std::pair<const char*, double>> parts = {
      {"CutAt10Percent", 0.1}, {"CutAt50Percent", 0.5}, {"CutAt90Percent", 0.9}};
  for (const auto& [name, part] : parts) {
    cases.push_back({name, 3, "tokens.h5", [part = part](Sandbox& s) {
                       s.rewrite("tokens.h5", [part](std::string& t) {
                         t.resize(static_cast<size_t>(part * static_cast<double>(t.size())));
                       });
                     }});
  }
  const std::vector<std::tuple<const char*, const char*, const char*, const char*>> adapters = {
      {"AdapterNoRank", "\"r\": 8", "\"r\": 0", ": r"},
      {"AdapterRankHuge", "\"r\": 8", "\"r\": 1099511627776", ": r"},
      {"AdapterRankText", "\"r\": 8", "\"r\": \"8\"", ": r"},
      {"AdapterOtherMethod", "\"LORA\"", "\"LOHA\"", "peft_type"},
      {"AdapterBias", "\"bias\": \"none\"", "\"bias\": \"all\"", "bias"},
      {"AdapterOfALaterPeft", "\"use_rslora\"", "\"use_later\": true, \"use_rslora\"", "use_later"},
  };
  for (const auto& [name, from, to, word] : adapters)
    cases.push_back(wrong_adapter(name, from, to, word));
  return cases;
}

}  // namespace utrain
