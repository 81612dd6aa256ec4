// The run directory as DESIGN promises it: what is in metrics.jsonl, summary.json and adapter/, who
// may write there and when, and that every way to end has its exit code on any number of ranks.
#include <cmath>
#include <set>

#include "app/run_directory.h"
#include "launch.h"
#include "token_files.h"

namespace utrain {
namespace {

using Words = std::vector<std::string>;

std::vector<std::string> keys_of(const Json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.as_object()) keys.push_back(key);
  return keys;
}

std::set<std::string> names_in(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir))
    names.insert(entry.path().filename().string());
  return names;
}

class RunDirectoryTest : public testing::Test {
 protected:
  RunDirectoryTest() { write_bytes(input_, golden_input("llama", run_dir_)); }

  Words arguments(const Words& more) const {
    Words words = {input_};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  Outcome run(int ranks, const Words& more = {}) { return launch(ranks, arguments(more)); }
  void expect_done(int ranks, const Words& more = {}) {
    const Outcome outcome = run(ranks, more);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
    EXPECT_EQ(outcome.err, "");
  }
  // One error line, from one rank, that says where, what, and what to do.
  void expect_error(int ranks, const Words& more, int code, const std::string& words) {
    SCOPED_TRACE(fmt::format("{} ranks {}", ranks, fmt::join(more, " ")));
    const Outcome outcome = run(ranks, more);
    EXPECT_EQ(outcome.exit_code, code) << outcome.text();
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
    EXPECT_NE(outcome.error_lines()[0].find(words), std::string::npos) << outcome.text();
    EXPECT_NE(outcome.error_lines()[0].find("; "), std::string::npos) << outcome.text();
    EXPECT_LT(outcome.seconds, 20.0);
  }
  std::vector<Json> metrics() const { return read_metrics(run_dir_ + "/metrics.jsonl"); }
  Json summary() const { return read_json(run_dir_ + "/summary.json"); }

  TempDir dir_;
  const std::string run_dir_ = dir_ / "run", input_ = dir_ / "input.toml";
  const std::string with_eval_ = "--data.eval=" + golden_path("llama") + "/tokens.h5";
};

TEST_F(RunDirectoryTest, MetricsHaveEveryStepInOrder) {
  const Words step_keys = {"step",          "epoch",  "loss",    "grad_norm",        "lr",
                           "target_tokens", "tokens", "step_ms", "tokens_per_second"};
  const Words eval_keys = {"step", "eval_loss", "eval_target_tokens"};
  expect_done(3, {with_eval_, "--eval.every=4", "--log.every=5", "--data.packing=false",
                  "--train.global_batch_size=3"});
  std::vector<std::string> order;
  std::string text;
  for (const Json& line : metrics()) {
    const bool is_step = line.find("loss") != nullptr;
    EXPECT_EQ(keys_of(line), is_step ? step_keys : eval_keys);
    order.push_back((is_step ? "" : "eval ") + to_text(*line.find("step")));
    text += to_text(line) + "\n";
  }
  EXPECT_EQ(order, (Words{"1", "2", "3", "4", "eval 4", "5", "6", "7", "8", "eval 8", "9", "10",
                          "eval 10"}));
  EXPECT_EQ(read_bytes(run_dir_ + "/metrics.jsonl"), text) << "floats read back the same";

  for (const Json& line : metrics()) {
    if (line.find("loss") == nullptr) continue;
    const auto number = [&](const char* key) { return line.find(key)->as_double(); };
    const double k = number("step") - 1.0;
    EXPECT_EQ(number("lr"), 0.005 * (k < 2.0 ? k / 2.0 : (10.0 - k) / 8.0));
    EXPECT_EQ(number("epoch"), (k + 1.0) / 3.0) << "8 documents, 3 a step";
    EXPECT_TRUE(line.find("tokens")->is_integer() && line.find("target_tokens")->is_integer());
    EXPECT_NEAR(number("tokens_per_second"), number("tokens") / number("step_ms") * 1e3,
                1e-9 * number("tokens_per_second"));
  }
  const Json s = summary();
  EXPECT_EQ(s.find("first_eval_loss")->as_double(), curve(metrics(), "eval_loss")[0]);
  EXPECT_EQ(s.find("last_eval_loss")->as_double(), curve(metrics(), "eval_loss")[2]);
}

TEST_F(RunDirectoryTest, SummaryTellsTheRun) {
  expect_done(3);
  EXPECT_EQ(names_in(run_dir_), (std::set<std::string>{"adapter", "input.resolved.toml",
                                                       "metrics.jsonl", "summary.json"}));
  const Json s = summary();
  for (const char* key :
       {"version", "config", "model", "ranks", "hosts", "gpus", "steps", "tokens", "first_loss",
        "last_loss", "tokens_per_second", "seconds", "peak_memory_bytes", "adapter", "exit_code"})
    EXPECT_NE(s.find(key), nullptr) << key;
  EXPECT_EQ(s.find("ranks")->as_int64(), 3);
  EXPECT_EQ(s.find("hosts")->as_array().size(), 3u);
  EXPECT_EQ(s.find("steps")->as_int64(), 10);
  EXPECT_EQ(s.find("tokens")->as_int64(), 2200);
  EXPECT_EQ(s.find("exit_code")->as_int64(), 0);
  EXPECT_EQ(s.find("adapter")->as_string(), run_dir_ + "/adapter");
  EXPECT_EQ(s.find("first_loss")->as_double(), curve(metrics(), "loss").front());
  EXPECT_EQ(s.find("last_loss")->as_double(), curve(metrics(), "loss").back());
  EXPECT_EQ(s.find("config")->find("train.lr")->as_double(), 0.005);
  EXPECT_EQ(s.find("config")->find("lora.r")->as_int64(), 8) << "as the adapter has it";
  EXPECT_GT(s.find("peak_memory_bytes")->find("process")->as_double(), 1e6);
  EXPECT_EQ(s.find("peak_memory_bytes")->find("libraries")->as_int64(), 0);
}

TEST_F(RunDirectoryTest, AdapterIsWhatPeftWrites) {
  expect_done(1);
  EXPECT_EQ(names_in(run_dir_ + "/adapter"),
            (std::set<std::string>{"adapter_config.json", "adapter_model.safetensors"}));
  const Json found = read_json(run_dir_ + "/adapter/adapter_config.json");
  const Json theirs = read_json(golden_path("llama") + "/adapter_init/adapter_config.json");
  for (const auto& [key, value] : found.as_object()) {
    const Json* wanted = theirs.find(key);
    ASSERT_NE(wanted, nullptr) << "PEFT has no key " << key;
    if (key == "base_model_name_or_path") {
      EXPECT_EQ(value.as_string(), golden_path("llama") + "/model");
    } else if (key == "target_modules") {
      EXPECT_EQ(value.as_array().size(), wanted->as_array().size());
    } else {
      EXPECT_EQ(to_text(value), to_text(*wanted)) << key;
    }
  }
  for (const char* key : {"peft_type", "task_type", "r", "lora_alpha", "target_modules", "bias"})
    EXPECT_NE(found.find(key), nullptr) << key;
  // And it is one to go on from.
  expect_done(3, {"--lora.init_from=" + run_dir_ + "/adapter", "--run.dir=" + (dir_ / "second")});
  EXPECT_LT(curve(read_metrics(dir_ / "second/metrics.jsonl"), "loss")[0],
            curve(metrics(), "loss").back());
}

TEST_F(RunDirectoryTest, FinishedRunIsKept) {
  expect_done(3);
  const std::string before = read_bytes(run_dir_ + "/metrics.jsonl");
  for (const int ranks : {kAlone, 1, 3})
    expect_error(ranks, {"--train.max_steps=2"}, 2, "run.overwrite = true");
  expect_error(1, {"--train.max_steps=2", "--dry-run=1"}, 2, "holds a finished run");
  EXPECT_EQ(read_bytes(run_dir_ + "/metrics.jsonl"), before);
  EXPECT_TRUE(std::filesystem::exists(run_dir_ + "/adapter/adapter_config.json"));
  expect_done(3, {"--train.max_steps=3", "--run.overwrite=true"});
  EXPECT_EQ(curve(metrics(), "step"), (std::vector<double>{1, 2, 3}));
  // A dry run writes metrics alone, so it takes nothing else away either.
  expect_done(1, {"--train.max_steps=3", "--run.overwrite=true", "--dry-run=1"});
  EXPECT_EQ(curve(metrics(), "step"), (std::vector<double>{1}));
  EXPECT_TRUE(std::filesystem::exists(run_dir_ + "/adapter/adapter_config.json"));
}

TEST_F(RunDirectoryTest, RunningOneIsLockedKilledOneStartedAgain) {
  for (const int ranks : {1, 3}) {
    SCOPED_TRACE(ranks);
    const Words overwrite = {"--run.overwrite=true"};
    Launch endless(ranks, arguments({"--train.max_steps=100000000", overwrite[0]}));
    for (int i = 0; i < 3000 && read_metrics(run_dir_ + "/metrics.jsonl").size() < 12; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ASSERT_TRUE(endless.is_running());
    ASSERT_FALSE(std::filesystem::exists(run_dir_ + "/summary.json"));
    expect_error(kAlone, {}, 2, "is in use by another running utrain");
    expect_error(3, overwrite, 2, "is in use by another running utrain");
    EXPECT_TRUE(endless.is_running());
    endless.kill_launcher();
    EXPECT_EQ(endless.wait(20.0).exit_code, 128 + SIGKILL);

    // The ranks notice the death of their launcher on their own.
    Outcome again;
    for (int i = 0; i < 100; ++i) {
      again = run(ranks);
      if (again.exit_code != 2) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    EXPECT_EQ(again.exit_code, 0) << again.text();
    EXPECT_EQ(curve(metrics(), "step").front(), 1.0);
    EXPECT_EQ(curve(metrics(), "step").size(), 10u);
  }
}

TEST_F(RunDirectoryTest, CheckWritesNothingDryRunOnlyMetrics) {
  for (const int ranks : {kAlone, 3}) {
    const Outcome check = run(ranks, {"--check"});
    EXPECT_EQ(check.exit_code, 0) << check.text();
    EXPECT_NE(check.out.find("nothing found wrong"), std::string::npos) << check.out;
    EXPECT_FALSE(std::filesystem::exists(run_dir_));
  }
  expect_done(3, {"--dry-run", "2"});
  EXPECT_EQ(names_in(run_dir_), (std::set<std::string>{"metrics.jsonl"}));
  EXPECT_EQ(curve(metrics(), "step"), (std::vector<double>{1, 2}));
  EXPECT_EQ(curve(metrics(), "lr")[1], 0.0025) << "the schedule is the whole run's";
  expect_done(1);
  EXPECT_EQ(curve(metrics(), "step").size(), 10u);
}

TEST_F(RunDirectoryTest, ATornSummaryIsOfNoFinishedRun) {
  std::filesystem::create_directory(run_dir_);
  for (const char* torn : {"", "{\"exit_code\": 0", "[]"}) {
    write_bytes(run_dir_ + "/summary.json", torn);
    expect_done(kAlone, {"--train.max_steps=1"});
    EXPECT_EQ(to_text(*summary().find("exit_code")), "0");
    std::filesystem::remove_all(run_dir_ + "/checkpoints");
  }
}

TEST_F(RunDirectoryTest, PrintedConfigIsAnInput) {
  const Outcome printed = run(3, {"--print-config", "--train.lr=0.0123", "--data.seq_len=77"});
  ASSERT_EQ(printed.exit_code, 0) << printed.text();
  EXPECT_NE(printed.out.find("lr = 0.0123"), std::string::npos) << printed.out;
  EXPECT_FALSE(std::filesystem::exists(run_dir_));
  const std::string copy = dir_ / "copy.toml";
  write_bytes(copy, printed.out);
  const Outcome again = launch(kAlone, {copy, "--print-config"});
  EXPECT_EQ(again.out, printed.out) << again.text();

  ASSERT_EQ(launch(1, {copy}).exit_code, 0);
  EXPECT_EQ(curve(metrics(), "lr")[2], 0.0123);
  EXPECT_EQ(summary().find("config")->find("data.seq_len")->as_int64(), 77);
  const Outcome from_run =
      launch(kAlone, {run_dir_ + "/input.resolved.toml", "--run.dir=" + (dir_ / "second")});
  EXPECT_EQ(from_run.exit_code, 0) << from_run.text();
  EXPECT_EQ(curve(read_metrics(dir_ / "second/metrics.jsonl"), "loss"), curve(metrics(), "loss"));
  const Outcome in_place =
      launch(kAlone, {run_dir_ + "/input.resolved.toml", "--run.overwrite=true"});
  EXPECT_EQ(in_place.exit_code, 0) << in_place.text();
  EXPECT_NE(read_bytes(run_dir_ + "/input.resolved.toml").find("overwrite = true"),
            std::string::npos);
}

TEST_F(RunDirectoryTest, Evaluation) {
  expect_done(2, {with_eval_});
  EXPECT_EQ(curve(metrics(), "eval_loss").size(), 1u) << "after the last step only";
  const double all = curve(metrics(), "eval_target_tokens")[0];
  EXPECT_EQ(all, curve(metrics(), "target_tokens")[0]);
  expect_done(3, {with_eval_, "--eval.max_rows=2", "--run.overwrite=true", "--train.lr=1e-30"});
  EXPECT_LT(curve(metrics(), "eval_target_tokens")[0], all);
  expect_done(3, {with_eval_, "--run.overwrite=true", "--train.lr=1e-30"});
  EXPECT_NEAR(curve(metrics(), "eval_loss")[0], curve(metrics(), "loss")[0], 1e-6);
}

TEST_F(RunDirectoryTest, RefusalsHaveTheirCodeOnAllRanks) {
  write_bytes(dir_ / "file", "");
  TokenDataSet silent = test::make_token_data_set({5, 6}, 320);
  silent.loss_mask.assign(silent.tokens.size(), 0);
  test::write_token_data_set(dir_ / "silent.h5", silent);
  const std::string model = dir_ / "model";
  std::filesystem::copy(golden_path("llama") + "/model", model);
  const std::string weights = model + "/model.safetensors";
  write_bytes(weights, read_bytes(weights).substr(0, 5000));

  struct Fault {
    Words arguments;
    int code;
    std::string words;
  };
  const std::vector<Fault> faults = {
      {{"--lora.r=4"}, 2, "lora.r"},
      {{"--lora.alpha=1"}, 2, "lora.alpha"},
      {{"--run.dir=" + (dir_ / "file")}, 2, "a directory"},
      {{"--checkpoint.resume=" + (dir_ / "none")}, 5, "none"},
      {{"--no-such-flag"}, 2, "no-such-flag"},
      {{"--data.eval=" + (dir_ / "silent.h5")}, 3, "no document has a target"},
      {{"--model.path=" + model}, 3, "model.safetensors"},
      {{"--run.dir=/proc/utrain/run"}, 74, "/proc"},
  };
  for (const Fault& fault : faults) {
    for (const int ranks : {1, 3}) expect_error(ranks, fault.arguments, fault.code, fault.words);
    EXPECT_FALSE(std::filesystem::exists(run_dir_)) << fault.words;
  }
  expect_error(kAlone, faults[0].arguments, 2, "lora.r");
  EXPECT_EQ(launch(3, {}).exit_code, 2);
}

TEST_F(RunDirectoryTest, ThreeBadStepsInARowDiverge) {
  for (const int ranks : {kAlone, 1, 3}) {
    expect_error(ranks, {"--train.lr=1e30", "--train.warmup_steps=0"}, 4, "3 steps in a row");
    EXPECT_EQ(names_in(run_dir_),
              (std::set<std::string>{"input.resolved.toml", "metrics.jsonl", "summary.json"}));
    const std::vector<double> losses = curve(metrics(), "loss"),
                              norms = curve(metrics(), "grad_norm");
    ASSERT_EQ(losses.size(), 4u);
    EXPECT_TRUE(std::isfinite(losses[0]) && std::isfinite(norms[0]));
    for (size_t i = 1; i < 4; ++i) EXPECT_TRUE(std::isnan(losses[i]) || std::isnan(norms[i]));
    EXPECT_EQ(curve(metrics(), "lr")[3], 1e30 * 0.7) << "a skipped step has its place";
    const Json s = summary();
    EXPECT_EQ(s.find("exit_code")->as_int64(), 4);
    EXPECT_TRUE(s.find("adapter")->is_null());
  }
  expect_done(1);  // a diverged run is no finished one
  EXPECT_EQ(names_in(run_dir_).count("adapter"), 1u);
}

TEST_F(RunDirectoryTest, ARunThatEndsOnBadNumbersDiverged) {
  for (const int ranks : {kAlone, 3}) {
    // The update of step 1 overflows: step 2 is bad, and there is no third.
    expect_error(ranks, {"--train.lr=1e30", "--train.warmup_steps=0", "--train.max_steps=2"}, 4,
                 "1 step in a row");
    // No step after the update that overflows.
    expect_error(ranks, {"--train.lr=1e39", "--train.warmup_steps=0", "--train.max_steps=1"}, 4,
                 "the adapter holds numbers that are not finite");
    EXPECT_EQ(names_in(run_dir_),
              (std::set<std::string>{"input.resolved.toml", "metrics.jsonl", "summary.json"}));
  }
}

TEST_F(RunDirectoryTest, AModelOfBadNumbersIsNotLeft) {
  write_bytes(input_, golden_input("llama_full", run_dir_));
  for (const int ranks : {kAlone, 3}) {
    // 1e30: the step after the update is bad. 1e39: the one update is the last step.
    for (const auto& [lr, steps, words] :
         {std::tuple{"1e30", 10, "3 steps in a row"}, {"1e39", 1, "of the trained model holds"}}) {
      expect_error(ranks,
                   {fmt::format("--train.lr={}", lr), "--train.warmup_steps=0",
                    fmt::format("--train.max_steps={}", steps)},
                   4, words);
      EXPECT_EQ(names_in(run_dir_),
                (std::set<std::string>{"input.resolved.toml", "metrics.jsonl", "summary.json"}));
      EXPECT_EQ(summary().find("exit_code")->as_int64(), 4);
    }
  }
}

// Redirected in each rank: what mpirun does with its own output is mpirun's.
TEST_F(RunDirectoryTest, ALostOutputIsInTheSummaryToo) {
  const std::string command = fmt::format("exec '{}' '{}' > /dev/full", binary(), input_);
  for (const int ranks : {kAlone, 3}) {
    SCOPED_TRACE(ranks);
    const Outcome outcome = Launch(ranks, {"-c", command}, "/bin/bash").wait();
    EXPECT_EQ(outcome.exit_code, 74) << outcome.text();
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
    EXPECT_NE(outcome.error_lines()[0].find("standard output: cannot be written; "),
              std::string::npos)
        << outcome.text();
    EXPECT_EQ(summary().find("exit_code")->as_int64(), 74);
    EXPECT_EQ(summary().find("steps")->as_int64(), 10);
    EXPECT_TRUE(std::filesystem::exists(run_dir_ + "/adapter/adapter_config.json"));
    std::filesystem::remove_all(run_dir_);
  }
}

// What the program opens itself must not take the place of a descriptor that the parent closed.
TEST_F(RunDirectoryTest, AClosedOutputIsALostOne) {
  for (const char* closed : {">&-", ">&- <&-", "2>&- >&- <&-"}) {
    SCOPED_TRACE(closed);
    const std::string command = fmt::format("exec '{}' '{}' {}", binary(), input_, closed);
    EXPECT_EQ(Launch(kAlone, {"-c", command}, "/bin/bash").wait().exit_code, 74);
    EXPECT_EQ(summary().find("exit_code")->as_int64(), 74);
    std::filesystem::remove_all(run_dir_);
  }
}

TEST_F(RunDirectoryTest, ASignAtEachFileThatGoes) {
  const Words files = {run_dir_ + "/checkpoints/step-00000005/index.h5",
                       run_dir_ + "/checkpoints/step-00000005/adapter/adapter_config.json",
                       run_dir_ + "/model/model.safetensors"};
  for (const std::string& file : files) {
    std::filesystem::create_directories(std::filesystem::path(file).parent_path());
    write_bytes(file, "x");
  }
  std::set<std::string> signs;
  RunStart again;
  again.clears_checkpoints = true;
  const RunDirectory directory(run_dir_, true, again,
                               [&](const std::string& path) { signs.insert(path); });
  for (const std::string& file : files) EXPECT_EQ(signs.count(file), 1u) << file;
  EXPECT_EQ(names_in(run_dir_), (std::set<std::string>{".lock", "metrics.jsonl"}));
}

TEST_F(RunDirectoryTest, RanksWithOtherArgumentsDoNotWaitForEachOther) {
  const Words first = arguments({"--check"});
  Words words = first;
  words.insert(words.end(), {":", "-np", "1", binary(), input_});
  const Outcome outcome = launch(1, words, 30.0);
  EXPECT_EQ(outcome.exit_code, 71) << outcome.text();
  EXPECT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
  EXPECT_EQ(launch(2, {"--help-config", "bogus"}, 30.0).exit_code, 2);
}

}  // namespace
}  // namespace utrain
