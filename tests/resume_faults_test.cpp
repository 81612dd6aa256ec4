// Which checkpoint a run goes on from where some are damaged, missing, of another input, or of a
// run that was killed; which ones stay; and what a dry run leaves alone.
#include <cmath>

#include "resume_case.h"

namespace utrain {
namespace {

namespace fs = std::filesystem;

class ResumeFaults : public ResumeCase {
 protected:
  ResumeFaults() { expect_done("whole", 2); }

  void flip_a_bit(const std::string& path) {
    std::string bytes = read_bytes(path);
    ASSERT_GT(bytes.size(), 100u) << path;
    bytes[bytes.size() * 2 / 3] ^= 4;
    write_bytes(path, bytes);
  }
  static int64_t n_warnings(const Outcome& outcome) {
    int64_t n = 0;
    std::istringstream lines(outcome.err);
    for (std::string line; std::getline(lines, line);) n += line.starts_with("utrain: warning: ");
    return n;
  }
  void expect_lines(const Outcome& outcome, size_t n, const Words& words) {
    EXPECT_EQ(outcome.error_lines().size(), n) << outcome.text();
    for (const std::string& word : words)
      EXPECT_NE(outcome.err.find(word), std::string::npos) << word << "\n" << outcome.text();
  }
};

TEST_F(ResumeFaults, PassesOverDamagedOnes) {
  const std::string shard = "/shard-00001-of-00002.h5";
  for (const auto& [what, damage] : std::vector<std::pair<Words, std::function<void()>>>{
           {{"shard-00001"}, [&] { flip_a_bit(checkpoint("parts", 10) + shard); }},
           {{"shard-00001"}, [&] { fs::resize_file(checkpoint("parts", 10) + shard, 1000); }},
           {{"COMMITTED"}, [&] { fs::remove(checkpoint("parts", 10) + "/COMMITTED"); }},
           {{"adapter_model"},
            [&] { flip_a_bit(checkpoint("parts", 10) + "/adapter/adapter_model.safetensors"); }}}) {
    SCOPED_TRACE(what[0]);
    ASSERT_NO_FATAL_FAILURE(interrupt("whole", 10, "parts"));
    damage();
    const Outcome outcome = expect_done("parts", 2);
    expect_lines(outcome, 0, {"utrain: warning: ", checkpoint("parts", 10), what[0]});
    EXPECT_EQ(n_warnings(outcome), 1) << outcome.text();
    EXPECT_TRUE(fs::exists(at("parts") + "/checkpoints/unused-step-00000010"));
    EXPECT_NE(outcome.out.find("from step 5 of"), std::string::npos) << outcome.text();
    expect_same_run("whole", "parts");
  }
}

TEST_F(ResumeFaults, AllDamagedOrTheNamedOne) {
  interrupt("whole", 10, "parts");
  for (const int step : {5, 10}) flip_a_bit(checkpoint("parts", step) + "/shard-00000-of-00002.h5");
  const std::string lines = read_bytes(at("parts") + "/metrics.jsonl");
  for (const int ranks : {kAlone, 2}) {
    const Outcome refused = expect_code(5, "parts", ranks);
    expect_lines(refused, 1,
                 {checkpoint("parts", 5), checkpoint("parts", 10), "no checkpoint in it is good"});
    EXPECT_EQ(n_warnings(refused), 2) << refused.text();
    expect_lines(expect_code(5, "parts", ranks, {"--checkpoint.resume=" + checkpoint("parts", 5)}),
                 1, {"shard-00000"});
    expect_lines(expect_code(5, "parts", ranks, {"--checkpoint.resume=" + checkpoint("parts", 7)}),
                 1, {"step-00000007"});
  }
  EXPECT_EQ(read_bytes(at("parts") + "/metrics.jsonl"), lines) << "a refusal changes nothing";
  // Begin again, by the user's word.
  expect_done("parts", 2, {"--checkpoint.resume=never"});
  expect_same_run("whole", "parts");
}

// A check before a job has one rank, whatever the run has: it says what is true of the run.
TEST_F(ResumeFaults, ACheckSpeaksOfTheRanksOfTheRun) {
  interrupt("whole", 10, "parts");
  const std::string changed = "equal to rounding, not to the bit: ",
                    on_two = "to the bit on 2 ranks";
  const auto checked = [&](int ranks, Words more, const char* tasks) {
    more.push_back("--check");
    ::setenv("SLURM_NTASKS", tasks, 1);
    const Outcome outcome = expect_done("parts", ranks, more);
    ::unsetenv("SLURM_NTASKS");
    EXPECT_NE(outcome.out.find("step 10 of "), std::string::npos) << outcome.text();
    return outcome.out;
  };
  const auto has = [](const std::string& text, const std::string& words) {
    return text.find(words) != std::string::npos;
  };
  for (const std::string& text :
       {checked(kAlone, {}, "1"), checked(kAlone, {"--ranks=2"}, "1"), checked(1, {}, "2")}) {
    EXPECT_TRUE(has(text, on_two)) << text;
    EXPECT_FALSE(has(text, changed)) << text;
  }
  for (const std::string& text : {checked(kAlone, {"--ranks=3"}, "2"), checked(1, {}, "3")})
    EXPECT_TRUE(has(text, changed + "2 ranks, now 3 changed") && has(text, "3, checked by 1 on"))
        << text;
  EXPECT_TRUE(has(checked(3, {}, "1"), changed + "2 ranks, now 3"));
  const std::string same = checked(2, {}, "1");
  EXPECT_FALSE(has(same, changed) || has(same, on_two)) << same;
}

// The check of a job script: what depends on the number of ranks is that of the run.
TEST_F(ResumeFaults, ACheckCountsTheRowsOfTheRanksOfTheRun) {
  std::string input = read_bytes(input_);
  const size_t key = input.find("global_batch_size");
  write_bytes(input_, input.erase(key, input.find('\n', key) - key));
  Words more = arguments("counted", {"--train.gradient_accumulation_steps=1"});
  std::erase_if(more, [](const std::string& w) { return w.starts_with("--train.global_batch"); });
  const Outcome done = launch(2, more);
  ASSERT_EQ(done.exit_code, 0) << done.text();
  interrupt("counted", 10, "counted");
  more.insert(more.end(), {"--check", "--ranks=2"});
  const Outcome same = launch(kAlone, more);
  EXPECT_EQ(same.exit_code, 0) << same.text();
  EXPECT_NE(same.out.find("of 2 rows (1 row a pass and rank)"), std::string::npos) << same.text();
  EXPECT_NE(same.out.find("everything checked for 2 ranks"), std::string::npos) << same.text();
  more.back() = "--ranks=3";
  const Outcome other = launch(kAlone, more);
  EXPECT_EQ(other.exit_code, 2) << other.text();
  expect_lines(other, 1,
               {"train.gradient_accumulation_steps: 1 x train.micro_batch_size 1 x 3 ranks are 3 "
                "rows a step, they were 2 in ",
                "set train.global_batch_size = 2 instead, run on 2 ranks as before, "});
  more.pop_back();
  expect_lines(launch(kAlone, more), 1, {"--check: ", " is of 2 ranks); add --ranks 2"});
}

TEST_F(ResumeFaults, ACheckReadsTheTasksOfSlurmAsItReadsRanks) {
  const auto checked = [&](const char* tasks, const Words& more = {}) {
    Words words = arguments("checked", {"--check"});
    words.insert(words.end(), more.begin(), more.end());
    ::setenv("SLURM_NTASKS", tasks, 1);
    const Outcome outcome = launch(kAlone, words);
    ::unsetenv("SLURM_NTASKS");
    return outcome;
  };
  for (const char* bad : {"1000000", "2x", "-1", "0", "99999999999999999999", " 2"})
    expect_lines(checked(bad), 1,
                 {"SLURM_NTASKS: found \"", "wanted a number of tasks >= 1 and <= "});
  EXPECT_EQ(checked("2x", {"--ranks=2"}).exit_code, 0) << "it is not asked";
  EXPECT_EQ(checked("").exit_code, 0);
  EXPECT_NE(checked("3").out.find("everything checked for 3 ranks"), std::string::npos);
}

TEST_F(ResumeFaults, AnotherInputIsRefusedUnlessAllowed) {
  interrupt("whole", 5, "parts");
  const Words changes = {"--train.lr=0.004", "--train.seed=5", "--eval.max_rows=2"};
  const Outcome refused = expect_code(2, "parts", 2, changes);
  expect_lines(refused, 3,
               {"train.lr: was 0.005 in ", "is 0.004 now", "train.seed: was 3407",
                "eval.max_rows: was 0", "checkpoint.allow_changes = [\"train.lr\"]"});
  Words allowed = changes;
  allowed.push_back("--checkpoint.allow_changes=train.lr,eval.max_rows");
  expect_lines(expect_code(2, "parts", 2, allowed), 1, {"train.seed"});
  allowed.back() += ",train.seed";
  const Outcome other = expect_done("parts", 2, allowed);
  EXPECT_NE(
      other.out.find("not the same run any more: eval.max_rows, train.lr, train.seed changed"),
      std::string::npos)
      << other.text();
  EXPECT_EQ(curve(metrics("parts"), "lr").size(), 12u);
  EXPECT_NE(curve(metrics("parts"), "lr")[5], curve(metrics("whole"), "lr")[5]);
  EXPECT_EQ(curve(metrics("parts"), "lr")[4], curve(metrics("whole"), "lr")[4]);

  // What the arrays depend on, and contents behind the same paths.
  fs::copy(golden_path("llama") + "/model", dir_ / "model");
  std::string weights = read_bytes(dir_ / "model/model.safetensors");
  for (size_t i = weights.size() / 4; i < weights.size(); ++i) weights[i] ^= 1;
  write_bytes(dir_ / "model/model.safetensors", weights);
  interrupt("whole", 5, "parts");
  expect_lines(expect_code(2, "parts", 2, {"--model.path=" + (dir_ / "model")}), 1,
               {"model: was "});
  expect_lines(expect_code(2, "parts", 2, {"--lora.init_from=", "--lora.r=4", "--lora.alpha=16"}),
               2, {"lora.r: was 8", "model: was "});
  expect_lines(expect_code(2, "parts", 2, {"--train.max_steps=4"}), 1, {"train.max_steps: was 12"});
}

TEST_F(ResumeFaults, TheNewestAndTheBestStay) {
  expect_done("kept", 2, {"--checkpoint.every=1", "--checkpoint.keep=2", "--eval.every=1"});
  const std::vector<double> losses = curve(metrics("kept"), "eval_loss");
  const auto best = std::min_element(losses.begin(), losses.end()) - losses.begin() + 1;
  std::set<std::string> wanted = {"LATEST", "step-00000011", "step-00000012",
                                  fmt::format("step-{:08}", best)};
  EXPECT_EQ(names_in(at("kept") + "/checkpoints"), wanted);
  // At a high learning rate the best is an early one.
  expect_done("high", 2,
              {"--checkpoint.every=1", "--checkpoint.keep=1", "--eval.every=1", "--train.lr=0.3"});
  const std::vector<double> high = curve(metrics("high"), "eval_loss");
  const auto first = std::min_element(high.begin(), high.end()) - high.begin() + 1;
  EXPECT_LT(first, 12);
  wanted = {"LATEST", "step-00000012", fmt::format("step-{:08}", first)};
  EXPECT_EQ(names_in(at("high") + "/checkpoints"), wanted);
}

TEST_F(ResumeFaults, OnlyFiniteOnesAreCommitted) {
  // The update of step 3 overflows, or what it leaves makes the next loss so.
  for (const char* lr : {"1e30", "1e39"}) {
    const Outcome outcome = start("bad", 2,
                                  {fmt::format("--train.lr={}", lr), "--eval.every=0",
                                   "--checkpoint.every=1", "--run.overwrite=true"});
    EXPECT_EQ(outcome.exit_code, 4) << outcome.text();
    for (const std::string& name : names_in(at("bad") + "/checkpoints")) {
      EXPECT_TRUE(name == "LATEST" || name == "step-00000001" || name == "step-00000002") << name;
    }
    EXPECT_TRUE(fs::exists(checkpoint("bad", 1)));
    fs::remove_all(at("bad"));
  }
}

TEST_F(ResumeFaults, KilledInTheMiddle) {
  const Words longer = {"--train.max_steps=200", "--checkpoint.every=40", "--eval.every=100",
                        "--checkpoint.keep=2"};
  expect_done("long", 2, longer);
  Launch run(2, arguments("killed", longer));
  for (int i = 0; i < 6000 && run.is_running() && !fs::exists(checkpoint("killed", 40)); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  // A rank, so that the launcher ends the others: those that lose a launcher may be done sooner.
  run.send(1, SIGKILL);
  EXPECT_NE(run.wait(20.0).exit_code, 0);
  const Outcome again = start("killed", 2, longer);
  EXPECT_EQ(again.exit_code, 0) << again.text();
  EXPECT_NE(again.out.find("continues  from step "), std::string::npos) << again.text();
  expect_same_run("long", "killed");
  for (const std::string& name : names_in(at("killed") + "/checkpoints"))
    EXPECT_EQ(name.find(".tmp"), std::string::npos) << "what a killed save left goes";
}

TEST_F(ResumeFaults, FinishedOnesAndDryRuns) {
  const std::string lines = read_bytes(at("whole") + "/metrics.jsonl");
  expect_lines(expect_code(2, "whole", 2), 1, {"holds a finished run"});
  EXPECT_EQ(read_bytes(at("whole") + "/metrics.jsonl"), lines);

  interrupt("whole", 10, "parts");
  const std::string torn = read_bytes(at("parts") + "/metrics.jsonl");
  for (const Words& words : {Words{"--dry-run=2"}, {"--dry-run=2", "--run.overwrite=true"}})
    expect_lines(expect_code(2, "parts", 2, words), 1, {"holds checkpoints"});
  expect_done("parts", 2, {"--check"});
  EXPECT_EQ(read_bytes(at("parts") + "/metrics.jsonl"), torn);
  expect_done("dry", 2, {"--dry-run=7"});
  EXPECT_EQ(names_in(at("dry")), (std::set<std::string>{"metrics.jsonl"}));

  // overwrite: an unfinished run goes on all the same, a finished one starts afresh.
  const Outcome on = expect_done("parts", 2, {"--run.overwrite=true"});
  EXPECT_NE(on.out.find("from step 10 of"), std::string::npos) << on.text();
  const Outcome afresh = expect_done("parts", 2, {"--run.overwrite=true", "--checkpoint.every=8"});
  EXPECT_EQ(afresh.out.find("continues"), std::string::npos) << afresh.text();
  EXPECT_EQ(names_in(at("parts") + "/checkpoints"),
            (std::set<std::string>{"LATEST", "step-00000008"}));
  expect_same_run("whole", "parts");
}

}  // namespace
}  // namespace utrain
