// Bad input, end to end: the exit code of the contract on 1 and on 4 ranks, within 5 s, each
// problem told once and with a remedy, at most 256 MiB above what sound input takes, and nothing
// left on disk. The cases: refusal_cases.h, and refusal_attacks.h for the full set, which takes
// minutes: refusal_test --gtest_also_run_disabled_tests
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>

#include <set>

#include "launch.h"
#include "refusal_attacks.h"
#include "refusal_cases.h"

namespace utrain {
namespace {

constexpr double kLimitSeconds = 5.0;
constexpr int64_t kLimitBytes = int64_t{256} << 20;

std::set<std::string> files_under(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) names.insert(entry.path());
  return names;
}

// Of the largest process, where nothing is wrong.
int64_t sound_peak_bytes() {
  static const int64_t peak = [] {
    Sandbox sandbox;
    sandbox.flags = {"--check"};
    const Outcome outcome = launch(4, sandbox.arguments());
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    return outcome.peak_bytes;
  }();
  return peak;
}

void expect_refusal(const Outcome& outcome, int exit_code, const std::string& word,
                    size_t n_lines) {
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.text();
  const std::vector<std::string> lines = outcome.error_lines();
  EXPECT_EQ(lines.size(), n_lines) << outcome.text();
  EXPECT_EQ(std::set<std::string>(lines.begin(), lines.end()).size(), lines.size())
      << outcome.text();
  bool found = false;
  for (const std::string& line : lines) {
    EXPECT_NE(line.find("; "), std::string::npos) << "no remedy: " << line;
    found |= line.find(word) != std::string::npos;
  }
  EXPECT_TRUE(found) << "no \"" << word << "\" in: " << outcome.text();
  for (const char* crash :
       {"terminate called", "Assertion", "Segmentation", "what()", "Sanitizer"}) {
    EXPECT_EQ(outcome.text().find(crash), std::string::npos) << outcome.text();
  }
}

// A busy machine may make one launch slow: the shorter of two counts.
void expect_refusal_in_time(Outcome outcome, int ranks, const std::vector<std::string>& arguments,
                            int exit_code, const std::string& word, size_t n_lines) {
  expect_refusal(outcome, exit_code, word, n_lines);
  if (outcome.seconds >= kLimitSeconds) {
    outcome = launch(ranks, arguments);
    expect_refusal(outcome, exit_code, word, n_lines);
  }
  EXPECT_LT(outcome.seconds, kLimitSeconds);
  EXPECT_LT(outcome.peak_bytes, sound_peak_bytes() + kLimitBytes);
}

// Alone and on 4 ranks at the same time: both read the same input, and neither writes.
void expect_refused(const Sandbox& sandbox, int exit_code, const std::string& word,
                    size_t n_lines = 1) {
  const std::vector<std::string> arguments = sandbox.arguments();
  const std::set<std::string> before = files_under(sandbox.dir.str());
  {
    Launch four(4, arguments), alone(kAlone, arguments);
    const Outcome of_one = alone.wait(), of_four = four.wait();
    expect_refusal_in_time(of_one, kAlone, arguments, exit_code, word, n_lines);
    expect_refusal_in_time(of_four, 4, arguments, exit_code, word, n_lines);
  }
  EXPECT_EQ(files_under(sandbox.dir.str()), before);
}

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

TEST(RunDirectoryRefused, AFile) {
  Sandbox sandbox;
  sandbox.set("run.dir", sandbox.quoted("tokens.h5"));
  expect_refused(sandbox, 2, "run.dir is a file");
}

TEST(RunDirectoryRefused, UnderAFile) {
  Sandbox sandbox;
  sandbox.set("run.dir", sandbox.quoted("tokens.h5/runs/1"));
  sandbox.flags = {"--check"};
  expect_refused(sandbox, 2, "which is a file");
}

TEST(RunDirectoryRefused, ANameTooLong) {
  Sandbox sandbox;
  sandbox.set("run.dir", sandbox.quoted(std::string(300, 'x')));
  expect_refused(sandbox, 2, "name another run.dir");
}

// What lies under a name of ours is found with everything else of the input, before the start table.
TEST(RunDirectoryRefused, ThingsOfAnotherKind) {
  struct Fault {
    const char* name;
    std::string words;
    std::function<void(const std::string& path)> make;
  };
  const auto link = [](const std::string& path) { fs::create_symlink("nowhere", path); };
  const auto directory = [](const std::string& path) { fs::create_directory(path); };
  const auto file = [](const std::string& path) { write_bytes(path, ""); };
  const auto pipe = [](const std::string& path) { ::mkfifo(path.c_str(), 0600); };
  const std::vector<Fault> faults = {
      {"run", "run is a link to nowhere, which does not exist; make ", link},
      {"run/.lock", "run/.lock: is not a regular file", directory},
      {"run/.lock", "run/.lock: is a link to what does not exist", link},
      {"run/metrics.jsonl", "run/metrics.jsonl: is not a regular file", directory},
      {"run/metrics.jsonl", "run/metrics.jsonl: is not a regular file", pipe},
      {"run/metrics.jsonl", "run/metrics.jsonl: is a link to what does not exist", link},
      {"run/checkpoints/LATEST", "checkpoints/LATEST: is not a regular file", directory},
      {"run/checkpoints/LATEST", "checkpoints/LATEST: is not a regular file", pipe},
      {"run/checkpoints", "run/checkpoints: is not a directory", file},
      {"run/checkpoints", "run/checkpoints: is a link to what does not exist", link},
  };
  for (const Fault& fault : faults) {
    for (const bool checks : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", fault.words, checks));
      Sandbox sandbox;
      fs::create_directories(fs::path(sandbox.dir / fault.name).parent_path());
      fault.make(sandbox.dir / fault.name);
      if (checks) sandbox.flags = {"--check"};
      expect_refused(sandbox, 2, fault.words);
    }
  }
}

// Under the names that a run clears or writes: what it is to read would go.
TEST(RunDirectoryRefused, WhereItsInputsWouldBeLost) {
  struct Fault {
    const char *key, *from, *to;  // what is named lies there
    std::string words;
  };
  const std::vector<Fault> faults = {
      {"model.path", "model", "run/model", "run/model; name another run.dir, or move "},
      {"lora.init_from", "adapter", "run/adapter",
       "run/adapter; to train on from it, name another run.dir"},
      {"data.train", "tokens.h5", "run/checkpoints/tokens.h5", "run/checkpoints; "},
      {"data.eval", "tokens.h5", "run/summary.json", "run/summary.json; "},
  };
  for (const Fault& fault : faults) {
    for (const bool checks : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", fault.key, checks));
      Sandbox sandbox;
      fs::create_directories(fs::path(sandbox.dir / fault.to).parent_path());
      fs::copy(sandbox.dir / fault.from, sandbox.dir / fault.to, fs::copy_options::recursive);
      sandbox.set(fault.key, sandbox.quoted(fault.to));
      sandbox.set("run.overwrite", "true");
      if (checks) sandbox.flags = {"--check"};
      expect_refused(sandbox, 2, fmt::format("error: {}: ", fault.key));
      expect_refused(sandbox, 2, fault.words);
    }
  }
}

TEST(RunDirectoryRefused, WhereItsInputFileWouldBeLost) {
  Sandbox sandbox;
  sandbox.arguments();
  fs::create_directory(sandbox.dir / "run");
  fs::copy(sandbox.dir / "input.toml", sandbox.dir / "run/input.resolved.toml");
  const std::string before = read_bytes(sandbox.dir / "input.toml");
  sandbox.with_input = false;
  sandbox.flags = {sandbox.dir / "run/input.resolved.toml"};
  expect_refused(sandbox, 2, "error: the input file: ");
  EXPECT_EQ(read_bytes(sandbox.flags[0]), before);
}

// A link in the middle of the path, to what is still to be made.
TEST(RunDirectoryRefused, UnderALinkThatLeadsNowhere) {
  Sandbox sandbox;
  fs::create_symlink("nowhere", sandbox.dir / "runs");
  sandbox.set("run.dir", sandbox.quoted("runs/1"));
  expect_refused(sandbox, 2, "runs is a link to nowhere");
}

TEST(RunDirectoryRefused, WhereTheSystemLetsNobodyMakeIt) {
  Sandbox sandbox;
  sandbox.set("run.dir", "\"/proc/utrain/run\"");
  expect_refused(sandbox, 74, "/proc/utrain/run");
}

TEST(RunDirectoryRefused, AFinishedRun) {
  Sandbox sandbox;
  fs::create_directory(sandbox.dir / "run");
  write_bytes(sandbox.dir / "run/summary.json", "{\"exit_code\": 0}");
  expect_refused(sandbox, 2, "run.overwrite");
}

TEST(RunDirectoryRefused, InUse) {
  Sandbox sandbox;
  fs::create_directory(sandbox.dir / "run");
  const int lock = ::open((sandbox.dir / "run/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  expect_refused(sandbox, 2, "in use");
  ::close(lock);
}

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

TEST(DumpRefused, IntoAMissingDirectory) {
  Sandbox sandbox;
  sandbox.flags = {"--dump", sandbox.dir / "none/out.safetensors"};
  expect_refused(sandbox, 2, "none/out.safetensors");
}

TEST(DumpRefused, InThePlaceOfADirectory) {
  Sandbox sandbox;
  sandbox.flags = {"--dump", sandbox.dir / "adapter"};
  expect_refused(sandbox, 74, "not a regular file");
}

TEST(DumpRefused, InThePlaceOfAnInput) {
  const std::vector<std::pair<const char*, std::string>> places = {
      {"input.toml", "would replace the input file"},
      {"tokens.h5", "would replace data.train"},
      {"eval.h5", "would replace data.eval"},
      {"model/model.safetensors", "lies in model.path"},
      {"model/dump.safetensors", "lies in model.path"},
      {"adapter/adapter_model.safetensors", "lies in lora.init_from"},
  };
  Sandbox sandbox;
  sandbox.go_on_from_adapter();
  fs::copy(sandbox.dir / "tokens.h5", sandbox.dir / "eval.h5");
  sandbox.set("data.eval", sandbox.quoted("eval.h5"));
  sandbox.arguments();
  for (const auto& [name, words] : places) {
    SCOPED_TRACE(name);
    const std::string before = read_bytes(sandbox.dir / name);
    sandbox.flags = {"--dump", sandbox.dir / name};
    expect_refused(sandbox, 2, words);
    EXPECT_TRUE(read_bytes(sandbox.dir / name) == before);
  }
}

TEST(Dump, TakesThePlaceOfAnOlderOne) {
  Sandbox sandbox;
  write_bytes(sandbox.dir / "out.safetensors", "older");
  sandbox.flags = {"--dump", sandbox.dir / "out.safetensors"};
  const Outcome outcome = launch(kAlone, sandbox.arguments());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_TRUE(SafetensorsFile(sandbox.dir / "out.safetensors").find("loss") != nullptr);
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
