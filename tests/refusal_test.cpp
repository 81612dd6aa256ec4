// Bad input, end to end, as refusal_launch.h expects it. The cases: refusal_cases.h, and
// refusal_attacks.h for the full set, which takes minutes:
// refusal_test --gtest_also_run_disabled_tests
#include <sys/resource.h>

#include <set>

#include "refusal_attacks.h"
#include "refusal_launch.h"

namespace utrain {
namespace {

class Refused : public testing::TestWithParam<Refusal> {};

TEST_P(Refused, OnOneAndFourRanks) {
  const Refusal& refusal = GetParam();
  Sandbox sandbox;
  refusal.damage(sandbox);
  expect_refused(sandbox, refusal.exit_code, refusal.word, refusal.n_lines);
}

std::string name_of_case(const testing::TestParamInfo<Refusal>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(Input, Refused, testing::ValuesIn(refusals_of_input()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Model, Refused, testing::ValuesIn(refusals_of_model()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Data, Refused, testing::ValuesIn(refusals_of_data()), name_of_case);
INSTANTIATE_TEST_SUITE_P(DISABLED_Input, Refused, testing::ValuesIn(attacks_on_input()),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(DISABLED_Config, Refused, testing::ValuesIn(attacks_on_config()),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(DISABLED_Weights, Refused, testing::ValuesIn(attacks_on_weights()),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(DISABLED_Index, Refused, testing::ValuesIn(attacks_on_index()),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(DISABLED_Data, Refused, testing::ValuesIn(attacks_on_data()),
                         name_of_case);

TEST(Sound, TheUndamagedInputIsNotRefused) {
  Sandbox sandbox;
  sandbox.go_on_from_adapter();
  sandbox.flags = {"--check"};
  const Outcome outcome = launch(kAlone, sandbox.arguments());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  sandbox.tokens([](TokenDataSet&) {});
  EXPECT_EQ(launch(kAlone, sandbox.arguments()).exit_code, 0);
}

// tokenizer.json with the hash that tools/prepare writes into the data.
TEST(Tokenizer, TheSameIsAccepted) {
  Sandbox sandbox;
  sandbox.flags = {"--check"};
  sandbox.made_with_tokenizer("{}", "{}");
  const Outcome outcome = launch(kAlone, sandbox.arguments());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
}

TEST(Tokenizer, IsNotAskedForWhereEitherIsMissing) {
  Sandbox sandbox;
  sandbox.flags = {"--check"};
  sandbox.made_with_tokenizer("{}", "{}");
  sandbox.remove("model/tokenizer.json");
  EXPECT_EQ(launch(kAlone, sandbox.arguments()).exit_code, 0);
  sandbox.tokens([](TokenDataSet&) {});
  write_bytes(sandbox.dir / "model/tokenizer.json", "{}");
  EXPECT_EQ(launch(kAlone, sandbox.arguments()).exit_code, 0);
}

// Whether a process has the file mapped.
bool is_mapped(const std::string& path) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    if (!std::isdigit(static_cast<unsigned char>(entry.path().filename().string()[0]))) continue;
    if (read_bytes(entry.path() / "maps").find(path) != std::string::npos) return true;
  }
  return false;
}

// Weights are cut once they are mapped to be loaded, which the start table comes before.
class WeightsCut : public testing::TestWithParam<int> {};

// On a busy machine the weights may all have been read before they are cut: then once more.
TEST_P(WeightsCut, WhileTheyAreRead) {
  Outcome outcome;
  std::string weights;
  for (int attempt = 0; attempt < 5 && outcome.exit_code <= 0; ++attempt) {
    Sandbox sandbox;
    sandbox.widen_vocabulary(1'000'000);  // 512 MB of zeros, none of it on disk
    weights = sandbox.dir / "model/model.safetensors";
    Launch run(GetParam(), sandbox.arguments());
    while (run.is_running() && run.out().find("memory") == std::string::npos) {
    }
    while (run.is_running() && !is_mapped(weights)) {
    }
    ASSERT_EQ(::truncate(weights.c_str(), 4096), 0);
    outcome = run.wait();
    EXPECT_EQ(fs::exists(sandbox.dir / "run"), outcome.exit_code == 0);
  }
  EXPECT_EQ(outcome.exit_code, 3) << outcome.text();
  const std::vector<std::string> lines = outcome.error_lines();
  ASSERT_EQ(lines.size(), 1u) << outcome.text();
  EXPECT_NE(lines[0].find(weights + ": the file was cut"), std::string::npos) << lines[0];
}

INSTANTIATE_TEST_SUITE_P(Ranks, WeightsCut, testing::Values(kAlone, 4));

TEST(MemoryRefused, AModelOfTheLargestSizes) {
  Sandbox sandbox;
  sandbox.set("model.init", "\"random\"");
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"hidden_size\": 64", "\"hidden_size\": 131072"},
           {"\"intermediate_size\": 176", "\"intermediate_size\": 1048576"},
           {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1024"},
           {"\"vocab_size\": 320", "\"vocab_size\": 4194304"}})
    sandbox.replace("model/config.json", from, to);
  expect_refused(sandbox, 2, "memory: ");
}

// A pass of a million tokens, each with a megabyte of activations: the base itself would fit.
TEST(MemoryRefused, AMicroBatchOfAllRows) {
  Sandbox sandbox;
  sandbox.set("train.micro_batch_size", "1048576");
  sandbox.set("train.global_batch_size", "1073741824");
  sandbox.set("model.init", "\"random\"");
  sandbox.replace("model/config.json", "\"intermediate_size\": 176",
                  "\"intermediate_size\": 262144");
  sandbox.tokens([](TokenDataSet& data) {
    data = test::make_token_data_set(std::vector<int64_t>(20000, 50));
  });
  expect_refused(sandbox, 2, "lower train.micro_batch_size");
}

TEST(Refusal, WithNobodyToTell) {
  for (const char* where : {"2>/dev/full", "2>&-"}) {
    const std::string command = fmt::format("'{}' nowhere.toml {}", binary(), where);
    EXPECT_EQ(Launch(kAlone, {"-c", command}, "/bin/bash").wait().exit_code, 2) << where;
  }
}

// Of a file whose name would be two lines and a colour.
TEST(Refusal, InOneLineForATerminal) {
  const Outcome outcome = Launch(kAlone, {"no\n\x1b[31mwhere.toml"}).wait();
  EXPECT_EQ(outcome.exit_code, 2);
  ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
  EXPECT_NE(outcome.error_lines()[0].find("no\\x0a\\x1b[31mwhere.toml: does not exist"),
            std::string::npos)
      << outcome.text();
}

// A limit on the size of files stands for a full disk: MPI's own files stay below it.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_;
};

class DiskFull : public testing::TestWithParam<int> {};

TEST_P(DiskFull, NoPartOfAnAdapterStays) {
  Sandbox sandbox;
  sandbox.set("lora.r", "2048");  // 18 MB
  const FileSizeLimit limit(rlim_t{8} << 20);
  const std::vector<std::string> arguments = sandbox.arguments();
  const Outcome outcome = launch(GetParam(), arguments);
  expect_refusal_in_time(outcome, GetParam(), arguments, 74, "run/adapter", 1);
  EXPECT_TRUE(fs::exists(sandbox.dir / "run/metrics.jsonl")) << outcome.text();
  EXPECT_FALSE(fs::exists(sandbox.dir / "run/adapter"));
  EXPECT_FALSE(fs::exists(sandbox.dir / "run/summary.json"));
}

TEST_P(DiskFull, NoPartOfADumpStays) {
  Sandbox sandbox;
  sandbox.set("lora.r", "2048");
  sandbox.flags = {"--dump", sandbox.dir / "out.safetensors"};
  const std::vector<std::string> arguments = sandbox.arguments();
  const std::set<std::string> before = files_under(sandbox.dir.str());
  const FileSizeLimit limit(rlim_t{8} << 20);
  expect_refusal_in_time(launch(GetParam(), arguments), GetParam(), arguments, 74,
                         "out.safetensors", 1);
  EXPECT_EQ(files_under(sandbox.dir.str()), before);
}

INSTANTIATE_TEST_SUITE_P(Ranks, DiskFull, testing::Values(kAlone, 4));

}  // namespace
}  // namespace utrain
