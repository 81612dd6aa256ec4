// A rank is stopped, or sleeps, in each phase: the job is over within the timeout and three seconds,
// with exit code 70 and one line that names the rank; and it goes on as if nothing had been.
#include "faults/fault_run.h"

namespace utrain {
namespace {

constexpr double kTimeoutSeconds = 5.0, kMoreSeconds = 3.0;

// Where a rank stops dead, and where one lives on but comes no further. Inside of one collective
// all ranks look alike, so a rank that sleeps does that between them.
struct Phase {
  const char *name, *stops, *sleeps;
};

const std::vector<Phase>& phases() {
  static const std::vector<Phase> all = {
      {"start", "call=MPI_Allreduce nth=8", "call=cblas_sgemm nth=1"},
      {"first step", "call=MPI_Isend nth=2", "call=cblas_sgemm nth=3"},
      {"step", "call=MPI_Isend nth=100", "call=cblas_sgemm nth=1500"},
      {"save", "call=write path=/checkpoints/step-00000015 nth=2",
       "call=write path=/checkpoints/step-00000015 nth=2"},
      {"sync of a save", "call=fsync path=/checkpoints/step-00000020 nth=1",
       "call=fsync path=/checkpoints/step-00000020 nth=1"},
      {"late step", "call=MPI_Isend nth=220", "call=cblas_sgemm nth=4500"},
  };
  return all;
}

void expect_named(const Outcome& outcome, int rank) {
  EXPECT_EQ(outcome.exit_code, 70) << outcome.text();
  const Words lines = outcome.error_lines();
  EXPECT_EQ(lines.size(), 1u) << outcome.text();
  for (const std::string& line : lines)
    EXPECT_NE(line.find(fmt::format("rank {} on ", rank)), std::string::npos) << line;
}

TEST(Hangs, AreEndedAndNameTheRank) {
  Campaign campaign("F3 hangs");
  FaultRun run;
  const int wanted = count_of(3, 24);
  for (int i = 0; i < wanted && !testing::Test::HasFailure(); ++i) {
    // In the short set some phases, each with one of the two.
    const auto n = static_cast<int>(phases().size());
    const Phase& phase = phases()[static_cast<size_t>((i * n / std::min(wanted, n)) % n)];
    const bool sleeps = (i + i / n) % 2 == 1;
    const int rank = static_cast<int>(campaign.below(4));
    const std::string fault =
        fmt::format("rank={} {} do={}", rank, sleeps ? phase.sleeps : phase.stops,
                    sleeps ? "sleep:1000" : "stop");
    SCOPED_TRACE(fmt::format("{}: {}", phase.name, fault));
    run.clear();
    auto launch = run.start(fault, 4, {fmt::format("--run.hang_timeout={}", kTimeoutSeconds)});
    const Outcome outcome = launch->wait(60.0);
    ASSERT_EQ(launch->struck().size(), 1u) << outcome.text();
    expect_named(outcome, rank);
    expect_over_soon(*launch, outcome, kTimeoutSeconds + kMoreSeconds);
    campaign.count("hangs");
    campaign.count(sleeps ? "sleeping" : "stopped");
    run.expect_finishes_as_if_nothing_was();
  }
}

// Slow is not hung: a rank that sleeps for less than the timeout, here and there.
TEST(Hangs, ASlowRankIsNone) {
  FaultRun run;
  auto launch = run.start(
      "rank=1 call=MPI_Isend nth=80 do=sleep:2; rank=2 call=MPI_Isend nth=150 do=sleep:2; "
      "rank=3 call=fsync path=/checkpoints/step-00000020 nth=1 do=sleep:3",
      4, {fmt::format("--run.hang_timeout={}", kTimeoutSeconds)});
  const Outcome outcome = launch->wait(60.0);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_EQ(launch->struck().size(), 3u);
  EXPECT_TRUE(run.result().adapter == FaultRun::reference().adapter);
}

// A save whose disk stands still is over as soon, though the training goes on beside it and the next
// save is far: steps take seconds by then.
TEST(Hangs, ASaveThatDoesNotMoveIsEndedBesideTheSteps) {
  constexpr double kTimeout = 3.0;
  struct Save {
    const char *file, *fault;
  };
  const std::vector<Save> saves = {
      {"shard-00002-of-00004.h5",
       "rank=2 call=write path=/checkpoints/step-00000005 nth=2 do=sleep:1000"},
      {"adapter/adapter_model.safetensors",
       "rank=0 call=fsync path=/adapter/adapter_model.safetensors nth=1 do=sleep:1000"},
      {"manifest.json", "rank=0 call=rename path=/manifest.json nth=1 do=sleep:1000"},
  };
  FaultRun run;
  for (const Save& save : saves) {
    SCOPED_TRACE(save.fault);
    run.clear();
    auto launch = run.start(fmt::format("{}; rank=1 call=MPI_Isend nth=60+ do=sleep:0.5", save.fault),
                            4, {fmt::format("--run.hang_timeout={}", kTimeout), "--eval.every=0"});
    const Outcome outcome = launch->wait(60.0);
    expect_named(outcome, save.fault[5] - '0');
    EXPECT_NE(outcome.err.find("in writing checkpoint step 5, file "), std::string::npos)
        << outcome.text();
    EXPECT_NE(outcome.err.find(fmt::format("/{};", save.file)), std::string::npos)
        << outcome.text();
    expect_over_soon(*launch, outcome, kTimeout + kMoreSeconds);
    EXPECT_GT(run.last_step(), 6);
    EXPECT_LT(run.last_step(), 10);  // so it was not the next save that noticed
  }
  run.expect_finishes_as_if_nothing_was();
}

// A disk that takes its time for each write and sync moves.
TEST(Hangs, ASlowDiskIsNone) {
  FaultRun run;
  auto launch = run.start(
      "rank=3 call=write path=/checkpoints/step-00000005 nth=1+ do=sleep:0.25; "
      "rank=3 call=fsync path=/checkpoints/step-00000005 nth=1+ do=sleep:1.5; "
      "rank=0 call=file path=/checkpoints/step-00000040 nth=1+ do=sleep:0.15",
      4, {"--run.hang_timeout=3"});
  const Outcome outcome = launch->wait(120.0);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_GT(launch->struck().size(), 20u);
  EXPECT_TRUE(run.result().adapter == FaultRun::reference().adapter);
}

}  // namespace
}  // namespace utrain
