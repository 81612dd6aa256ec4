// Goes on where another number of ranks stopped: no sample twice, none left out, the curve of the
// undisturbed run. And: bad numbers end a run without losing what was good, one directory has one
// job, a directory of an older run is cleaned of what was cut off.
#include "faults/fault_run.h"

namespace utrain {
namespace {

// Stops some steps further on: as soon as their lines of metrics are written.
void run_on_for_a_while(const FaultRun& run, int ranks, Campaign& campaign) {
  const int64_t before = run.last_step();
  const std::string fault = fmt::format("rank=0 call=write path=/metrics.jsonl nth={} do=signal:{}",
                                        5 + campaign.below(4), SIGUSR1);
  auto launch = run.start(fault, ranks);
  const Outcome outcome = launch->wait();
  ASSERT_EQ(outcome.exit_code, 75) << outcome.text();
  EXPECT_GT(run.last_step(), before);
  EXPECT_LT(run.last_step(), FaultRun::kSteps);
}

void expect_the_curve_of_the_reference(const FaultRun& run) {
  const FaultRun other;
  ASSERT_EQ(other.go_on().exit_code, 0);
  const std::vector<Json> wanted = other.metrics(), found = run.metrics();
  EXPECT_EQ(curve(found, "step"), curve(wanted, "step")) << "each step once, in order";
  EXPECT_EQ(curve(found, "tokens"), curve(wanted, "tokens"));
  EXPECT_EQ(curve(found, "target_tokens"), curve(wanted, "target_tokens"));
  for (const char* key : {"loss", "grad_norm", "eval_loss"}) {
    const std::vector<double> a = curve(found, key), b = curve(wanted, key);
    ASSERT_EQ(a.size(), b.size());
    double largest = 0.0;
    for (size_t i = 0; i < a.size(); ++i)
      largest = std::max(largest, std::abs(a[i] - b[i]) / std::abs(b[i]));
    fmt::print("largest relative difference of {}: {:.2g}\n", key, largest);
    EXPECT_LE(largest, 1e-5) << key;
  }
}

TEST(Resumed, OnOtherNumbersOfRanks) {
  Campaign campaign("F7 other ranks");
  const std::vector<std::vector<int>> ways = {{4, 2, 3, 1, 4}, {1, 4, 2}, {3, 2, 4, 1}};
  for (int i = 0; i < count_of(1, 12) && !testing::Test::HasFailure(); ++i) {
    const std::vector<int>& ways_on = ways[static_cast<size_t>(i) % ways.size()];
    const FaultRun run;
    for (size_t k = 0; k + 1 < ways_on.size(); ++k) {
      SCOPED_TRACE(fmt::format("way {} leg {} on {} ranks", i, k, ways_on[k]));
      run_on_for_a_while(run, ways_on[k], campaign);
      if (testing::Test::HasFailure()) return;
      campaign.count("changes");
    }
    const Outcome outcome = run.go_on(ways_on.back());
    ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
    expect_the_curve_of_the_reference(run);
  }
}

TEST(BadNumbers, EndARunAndLeaveWhatWasGood) {
  Campaign campaign("F10 bad numbers");
  FaultRun run;
  run.start(fmt::format("rank=0 call=fsync path=/checkpoints/step-00000015 nth=1 do=signal:{}",
                        SIGUSR1))
      ->wait();
  const std::vector<int64_t> good = run.checkpoint_steps();
  ASSERT_GE(good.size(), 2u);
  const std::string kept = run.file("kept");
  fs::copy(run.run_dir(), kept, fs::copy_options::recursive);
  for (int i = 0; i < count_of(1, 4) && !testing::Test::HasFailure(); ++i) {
    const Outcome outcome =
        run.go_on(4, {"--train.lr=1e30", R"(--checkpoint.allow_changes=["train.lr"])"});
    EXPECT_EQ(outcome.exit_code, 4) << outcome.text();
    EXPECT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
    for (const int64_t step : good) {
      const auto steps = run.checkpoint_steps();
      EXPECT_NE(std::ranges::find(steps, step), steps.end()) << step;
    }
    campaign.count("diverged runs");
    run.expect_finishes_as_if_nothing_was();
    run.clear();
    fs::copy(kept, run.run_dir(), fs::copy_options::recursive);
  }
}

TEST(TwoJobs, InOneDirectoryTheSecondIsRefused) {
  FaultRun run;
  auto first = run.start("rank=1 call=write path=/checkpoints/step-00000015 nth=1 do=sleep:3");
  for (int k = 0; k < 2000 && first->struck().empty(); ++k)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const Words before = run.names_in_checkpoints();
  for (const int ranks : {kAlone, 4}) {
    const Outcome second = utrain::launch(ranks, run.arguments());
    EXPECT_EQ(second.exit_code, 2) << second.text();
    ASSERT_EQ(second.error_lines().size(), 1u) << second.text();
    EXPECT_NE(second.error_lines()[0].find("in use"), std::string::npos);
  }
  EXPECT_EQ(first->wait().exit_code, 0);
  EXPECT_EQ(run.result().metrics, FaultRun::reference().metrics);
}

}  // namespace
}  // namespace utrain
