// The input of a run: the table of keys, input.toml, overrides, the command line. Every refusal has
// a case that names the text and the place of its message.
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "config/input_file.h"
#include "config/keys.h"
#include "config/print.h"
#include "config_cases.h"
#include "core/error.h"

namespace utrain {
namespace {

using Texts = std::vector<std::string>;

// What is required, so that a case holds nothing but its own fault.
std::vector<Override> sound() {
  return {{"model.path", "/"}, {"data.train", "/"}, {"run.dir", "run"}, {"train.max_steps", "10"}};
}

std::vector<Override> sound_and(std::vector<Override> more) {
  std::vector<Override> all = sound();
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::vector<Override> sound_without(const std::string& key) {
  std::vector<Override> some;
  for (const Override& item : sound())
    if (item.key != key) some.push_back(item);
  return some;
}

// The problems of a text, "" when there are none.
std::string problems(const std::string& text, const std::vector<Override>& overrides = sound()) {
  try {
    parse_config(text, "in.toml", overrides);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
}

void expect_contains(const std::string& text, const Texts& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "wanted: " << part << "\nfound: " << text;
}

size_t count_lines(const std::string& text) {
  return text.empty() ? 0 : 1 + static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

std::string repeat(const std::string& part, size_t times) {
  std::string text;
  for (size_t i = 0; i < times; ++i) text += part;
  return text;
}

class TempDir {
 public:
  TempDir() : path_(fmt::format("{}utrain_config_test_{}", testing::TempDir(), getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string write(const std::string& name, const std::string& text) const {
    const std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(InputFile, RefusesEveryMalformedInputAtItsPlace) {
  EXPECT_GE(malformed().size(), 40u);
  for (const Case& c : malformed()) {
    SCOPED_TRACE(c.text);
    // The file may hold a required key itself: its fault counts although an override wins.
    const std::string found = problems(c.text);
    ASSERT_NE(found, "");
    expect_contains(found, c.expected);
  }
}

TEST(InputFile, OneLineForEachProblem) {
  for (const Case& c : malformed()) {
    if (c.text.find("epochs") != std::string::npos) continue;  // against max_steps too
    EXPECT_EQ(count_lines(problems(c.text)), 1u) << c.text << "\n" << problems(c.text);
  }
}

// Values of the contract that come later, each refused with a way on; the default is always taken.
TEST(InputFile, RefusesWhatIsNotInThisVersion) {
  std::set<std::string> seen;
  for (const Case& c : not_in_this_version()) {
    SCOPED_TRACE(c.text);
    const std::string found = problems(c.text);
    expect_contains(found, c.expected);
    expect_contains(found, {"not in this version; "});
    EXPECT_EQ(count_lines(found), 1u);
    const size_t bracket = c.text.find(']');
    seen.insert(c.text.substr(1, bracket - 1) + "." +
                c.text.substr(bracket + 2, c.text.find(' ') - bracket - 2));
  }
  for (const Key& key : keys()) {
    if (key.not_built.remedy.empty()) continue;
    EXPECT_TRUE(seen.count(std::string(key.name))) << key.name << " has no case";
    const std::string value = value_text(key, Config{});
    EXPECT_EQ(problems(fmt::format("[{}]\n{} = {}", key.section(), key.key(), value)), "");
  }
  EXPECT_EQ(problems("[parallel]\ncollectives=\"nccl\"\n[run]\nbackend=\"cuda\"\ngpu_memory_gb="
                     "40\n[model]\ndtype=\"float32\"\n"
                     "[checkpoint]\nresume=\"never\"\n[train]\nrecompute=\"block\""),
            "");
}

TEST(InputFile, AllProblemsInOneGoInTheOrderOfTheFile) {
  const std::string text =
      "[train]\nlr = -1\n[lora]\nr = 0\nalhpa = 3\n[data]\neval = \"/no/such\"";
  const std::string found = problems(text, {{"train.sede", "1"}, {"train.eps", "x"}});
  EXPECT_EQ(count_lines(found), 10u) << found;
  size_t last = 0;
  for (const char* part :
       {"in.toml:2:6: train.lr", "in.toml:4:5: lora.r", "in.toml:5:1: lora.alhpa",
        "in.toml:7:8: data.eval", "--train.sede=1: unknown key; did you mean \"train.seed\"?",
        "--train.eps=x: found the string \"x\"", "in.toml: model.path: missing",
        "in.toml: data.train: missing", "in.toml: run.dir: missing",
        "in.toml: train.max_steps: found neither this nor train.epochs"}) {
    const size_t at = found.find(part);
    ASSERT_NE(at, std::string::npos) << part << "\n" << found;
    EXPECT_GE(at, last) << part;
    last = at;
  }
}

TEST(InputFile, AHundredProblemsAreEnough) {
  std::string text = "[lora]\n";
  for (int i = 0; i < 150; ++i) text += fmt::format("x{} = 1\n", i);
  const std::string found = problems(text);
  EXPECT_EQ(count_lines(found), 101u);
  expect_contains(found, {"in.toml:101:1: ", "\ninput: 50 more problems; "});
  EXPECT_EQ(found.find("in.toml:102:1: "), std::string::npos);
}

TEST(InputFile, RequiredAndExclusiveKeys) {
  for (const char* key : {"model.path", "data.train", "run.dir"})
    expect_contains(problems("", sound_without(key)), {fmt::format("in.toml: {}: missing", key)});
  const std::vector<Override> no_length = sound_without("train.max_steps");
  expect_contains(problems("", no_length),
                  {"found neither this nor train.epochs, wanted exactly one"});
  expect_contains(
      problems("[train]\nmax_steps = 1\nepochs = 1", no_length),
      {"in.toml:3:10: train.epochs: found train.max_steps as well, wanted exactly one"});
  EXPECT_EQ(problems("[train]\nepochs = 0.5", no_length), "");
  expect_contains(problems("[model]\npath = \"/no/such\"", sound_without("model.path")),
                  {"in.toml:2:8: model.path: \"/no/such\" does not exist"});
  const auto of_model = [](const char* path) {
    return problems(fmt::format("[model]\npath = \"{}\"", path), sound_without("model.path"));
  };
  expect_contains(of_model("owner/model"),
                  {"does not exist", "download it first (hf download ID --local-dir DIR)"});
  for (const char* path : {"/no/such", "./such", "no/such/model", "such", "such/"})
    EXPECT_EQ(of_model(path).find("download"), std::string::npos) << path;
  expect_contains(problems("[data]\ntrain = \"/dev/null/x\"", sound_without("data.train")),
                  {"in.toml:2:9: data.train: \"/dev/null/x\" does not exist"});
}

TEST(InputFile, ReadsValues) {
  const Config config = parse_config(
      "\xef\xbb\xbf# comment\r\nlora.r = 1_6\r\nlora.alpha = 32\r\nlora.target_modules = "
      "\"all-linear\"\r\n"
      "[train]\nlr = 0\nbetas = [0, 0.95]\nseed = 9223372036854775807\nschedule = 'cosine'\n"
      "[data]\npacking = false\n",
      "in.toml", sound());
  EXPECT_EQ(config.lora.r, 16);
  EXPECT_EQ(config.lora.alpha, 32.0);
  EXPECT_EQ(config.lora.target_modules, Config{}.lora.target_modules);
  EXPECT_EQ(config.train.lr, 0.0);
  EXPECT_EQ(config.train.betas, (std::vector<double>{0, 0.95}));
  EXPECT_EQ(config.train.seed, INT64_MAX);
  EXPECT_EQ(config.train.schedule, "cosine");
  EXPECT_FALSE(config.data.packing);
  EXPECT_EQ(config.train.max_steps, 10);
  EXPECT_TRUE(config.is_given("lora.r"));
  EXPECT_TRUE(config.is_given("train.max_steps"));
  EXPECT_FALSE(config.is_given("lora.dropout"));
}

TEST(InputFile, HugeAndDeepInputIsRefusedNotCrashed) {
  const size_t limit = 64 * 1024;
  const std::vector<std::string> texts = {
      "[lora]\nr = " + repeat("[", 3000) + repeat("]", 3000),
      "[lora]\nr = " + repeat("{a=", 3000) + "1" + repeat("}", 3000),
      "[lora]\nr = " + repeat("[", limit - 100),
      "lora" + repeat(".a", 32000) + " = 1",
      "[lora" + repeat(".a", 32000) + "]",
      "[[lora" + repeat(".a", 32000) + "]]",
      "lora.r = {a" + repeat(".a", 32000) + " = 1}",
      "lora" + repeat(".a", 8192) + " = 1",
      "[lora" + repeat(".a", 4000) + "]\na" + repeat(".a", 4000) + " = 1",
      "lora.r = {a" + repeat(".a", 8000) + " = 1}",
      "[lora]\n" + repeat("a", 65000) + " = 1",
      "[lora]\nr = \"" + repeat("a", 65000) + "\"",
      "[lora]\nr = " + repeat("9", 65000),
      "[lora]\ntarget_modules = [" + repeat("\"q_proj\",", 7000) + "]",
      repeat("[a]\n", 10000),
      repeat("\n", limit - 1) + "x",
  };
  for (const std::string& text : texts) {
    ASSERT_LE(text.size(), limit);
    const std::string found = problems(text);
    EXPECT_NE(found, "") << text.substr(0, 40);
    EXPECT_LT(found.size(), 1000u) << text.substr(0, 40);
  }
  const std::string value = repeat("[", 70000);
  EXPECT_NE(problems("", sound_and({{"train.betas", value}})), "");
  EXPECT_NE(problems("", sound_and({{"lora" + repeat(".a", 70000), "1"}})), "");
}

TEST(InputFile, IsNamedInWhatIsWrongWithIt) {
  const TempDir dir;
  const std::string bad = dir.write("bad.toml", "[lora]\nr = 0\n");
  try {
    read_config(bad, sound());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    expect_contains(error.what(), {bad + ":2:5: lora.r: "});
  }
}

TEST(Overrides, WinOverTheFileInEverySpelling) {
  const auto read = [](const std::string& key, const std::string& value) {
    return parse_config("[lora]\nr = 4\n[train]\nschedule = \"cosine\"", "in.toml",
                        sound_and({{key, value}}));
  };
  EXPECT_EQ(read("lora.r", "8").lora.r, 8);
  EXPECT_EQ(read("data.seq_len", "1_000").data.seq_len, 1000);
  EXPECT_EQ(read("train.lr", "1e-4").train.lr, 1e-4);
  EXPECT_EQ(read("train.lr", "1").train.lr, 1.0);
  EXPECT_FALSE(read("data.packing", "false").data.packing);
  EXPECT_EQ(read("train.schedule", "constant").train.schedule, "constant");
  EXPECT_EQ(read("train.schedule", "\"constant\"").train.schedule, "constant");
  EXPECT_EQ(read("train.schedule", "'constant'").train.schedule, "constant");
  EXPECT_EQ(read("data.eval", "").data.eval, "");
  EXPECT_EQ(read("train.betas", "[0.8, 0.9]").train.betas, (std::vector<double>{0.8, 0.9}));
  EXPECT_EQ(read("train.betas", "0.8,0.9").train.betas, (std::vector<double>{0.8, 0.9}));
  const Texts two = {"q_proj", "v_proj"};
  for (const char* text : {"[\"q_proj\",\"v_proj\"]", "['q_proj', 'v_proj']", "[q_proj,v_proj]",
                           "q_proj,v_proj", " q_proj , v_proj"})
    EXPECT_EQ(read("lora.target_modules", text).lora.target_modules, two) << text;
  EXPECT_EQ(read("lora.target_modules", "k_proj").lora.target_modules, Texts{"k_proj"});
  for (const char* text : {"all-linear", "\"all-linear\""})
    EXPECT_EQ(read("lora.target_modules", text).lora.target_modules.size(), 7u) << text;
  EXPECT_TRUE(read("lora.dropout", "0.5").is_given("lora.dropout"));
}

TEST(Overrides, AreRefusedByName) {
  struct Bad {
    std::string key, value;
    Texts expected;
  };
  const std::vector<Bad> cases = {
      {"train.lr",
       "abc",
       {"--train.lr=abc: found the string \"abc\", wanted a finite number >= 0"}},
      {"train.lr", "", {"--train.lr=: found the string \"\""}},
      {"lora.r", "8.5", {"--lora.r=8.5: found 8.5, wanted an integer"}},
      {"lora.r", "8\nx=1", {"--lora.r=8 x=1: found the string"}},
      {"lora.r", "0", {"--lora.r=0: found 0"}},
      {"lora.r", "\"8\"", {"found the string \"8\", wanted an integer"}},
      {"data.packing",
       "True",
       {"--data.packing=True: found the string \"True\", wanted true or false"}},
      {"data.packing", "1", {"--data.packing=1: found 1, wanted true or false"}},
      {"loar.r",
       "8",
       {"--loar.r=8: unknown key; did you mean \"lora.r\"? (utrain --help-config lora)"}},
      {"train.r", "8", {"--train.r=8: unknown key; did you mean \"lora.r\"?"}},
      {"checkpont.every", "8", {"did you mean \"checkpoint.every\"?"}},
      {"r", "8", {"--r=8: unknown key; did you mean \"lora.r\"?"}},
      {"train.max_steps", "11", {"--train.max_steps=11: found the override a second time"}},
      {"train.epochs", "1", {"--train.epochs=1: found train.max_steps as well"}},
      {"model.quantize", "nf4", {"--model.quantize=nf4: \"nf4\" is not in this version"}},
      {"data.eval", "/no/such", {"--data.eval=/no/such: \"/no/such\" does not exist"}},
      {"data.eval", "\xff", {"not UTF-8"}},
      {"lora.target_modules", "q_proj,", {"lora.target_modules=q_proj,: found the string \"\""}},
      {"lora.target_modules", "", {"found the string \"\""}},
      {"train.betas", "0.9", {"--train.betas=0.9: found 0.9, wanted an array of 2"}},
  };
  for (const Bad& bad : cases) {
    SCOPED_TRACE(bad.key + "=" + bad.value);
    const std::string found = problems("", sound_and({{bad.key, bad.value}}));
    expect_contains(found, bad.expected);
    EXPECT_EQ(count_lines(found), 1u) << found;
  }
}

void expect_round_trip(const Config& config) {
  const std::string text = print_config(config);
  SCOPED_TRACE(text);
  const Config again = parse_config(text, "printed.toml", {});
  EXPECT_EQ(config_values(again), config_values(config));
  EXPECT_EQ(print_config(again), text);
}

TEST(Print, ReadsBackToTheSameConfig) {
  const TempDir dir;
  const std::string odd = dir.path() + "/a \"b\" \\ # \xc3\xa4";
  std::filesystem::create_directory(odd);
  expect_round_trip(parse_config("", "in.toml", sound()));
  expect_round_trip(
      parse_config("", "in.toml", sound_and({{"train.gradient_accumulation_steps", "3"}})));
  std::vector<Override> overrides = sound_without("train.max_steps");
  overrides.insert(overrides.end(), {{"train.epochs", "0.1"},
                                     {"lora.alpha", "1e300"},
                                     {"train.lr", "0.30000000000000004"},
                                     {"train.eps", "5e-324"},
                                     {"train.seed", "9223372036854775807"},
                                     {"lora.target_modules", "down_proj,k_proj"},
                                     {"lora.use_rslora", "true"},
                                     {"checkpoint.allow_changes", "data,train.lr"},
                                     {"data.eval", odd}});
  const Config config = parse_config("", "in.toml", overrides);
  EXPECT_EQ(config.data.eval, odd);
  EXPECT_EQ(config.checkpoint.allow_changes, (std::vector<std::string>{"data", "train.lr"}));
  expect_round_trip(config);
}

TEST(Print, UnsetKeysAreComments) {
  const Config config =
      parse_config("", "in.toml", sound_and({{"train.gradient_accumulation_steps", "3"}}));
  expect_contains(print_config(config),
                  {"\nmax_steps = 10 ", "\n# epochs = ", "\n# global_batch_size = ",
                   "\ngradient_accumulation_steps = 3 ", "\n[run]\ndir = \"run\" "});
  // What is left to the adapter must not become a demand.
  const Config from =
      parse_config("", "in.toml", sound_and({{"lora.init_from", "/"}, {"lora.r", "4"}}));
  expect_contains(print_config(from),
                  {"\nr = 4 ", "\n# alpha = ", "\n# use_rslora = ", "\n# target_modules = "});
  const Config again = parse_config(print_config(from), "in.toml", {});
  EXPECT_TRUE(again.is_given("lora.r"));
  for (const char* key : {"lora.alpha", "lora.use_rslora", "lora.target_modules"})
    EXPECT_FALSE(again.is_given(key)) << key;
  expect_round_trip(from);
}

TEST(Print, ValuesAreJson) {
  const auto values = config_values(parse_config("", "in.toml", sound()));
  EXPECT_EQ(values.size(), keys().size());
  const auto value = [&](const std::string& key) {
    for (const auto& [name, text] : values)
      if (name == key) return text;
    return std::string("none");
  };
  EXPECT_EQ(value("model.path"), "\"/\"");
  EXPECT_EQ(value("lora.alpha"), "16.0");
  EXPECT_EQ(value("train.max_steps"), "10");
  EXPECT_EQ(value("train.epochs"), "null");
  EXPECT_EQ(value("train.betas"), "[0.9, 0.999]");
  EXPECT_EQ(value("data.packing"), "true");
  EXPECT_EQ(quoted("a\"\\\n\x7f"), "\"a\\\"\\\\\\u000a\\u007f\"");
}

}  // namespace
}  // namespace utrain
