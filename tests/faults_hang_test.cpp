// A rank is stopped, or sleeps, in each phase: the job is over within the timeout and three seconds,
// with exit code 70 and one line that names the rank; and it goes on as if nothing had been.
#include "faults/fault_run.h"

namespace utrain {
namespace {

constexpr double kTimeoutSeconds = 5.0, kMoreSeconds = 3.0;

// Where a rank stops dead, and where one lives on but comes no further: between collectives and
// inside of them.
struct Phase {
  const char *name, *stops, *sleeps;
};

const std::vector<Phase>& phases() {
  static const std::vector<Phase> all = {
      {"start", "call=MPI_Iallreduce nth=6", "call=cblas_sgemm nth=1"},
      {"agreement at the start", "call=MPI_Iallreduce nth=7", "call=MPI_Iallreduce nth=6"},
      {"first step", "call=MPI_Isend nth=2", "call=cblas_sgemm nth=3"},
      {"step", "call=MPI_Isend nth=100", "call=cblas_sgemm nth=1500"},
      {"sum of a step", "call=MPI_Isend nth=101", "call=MPI_Isend nth=100"},
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
  const int wanted = count_of(4, 24);
  for (int i = 0; i < wanted && !testing::Test::HasFailure(); ++i) {
    // In the short set some phases, each with one of the two; another seed takes the other.
    const auto n = static_cast<int>(phases().size());
    const Phase& phase = phases()[static_cast<size_t>((i * n / std::min(wanted, n)) % n)];
    const bool sleeps = (i + i / n + number_in("UTRAIN_FAULTS_SEED", 1)) % 2 == 1;
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

// Nor is a large run of before that goes file by file.
TEST(Hangs, ASlowRemovalIsNone) {
  FaultRun run;
  const std::string old = run.checkpoints() + "/step-00000099";
  fs::create_directories(old);
  for (const char* name : {"a", "b", "c", "d", "e"}) write_bytes(old + "/" + name, "");
  write_bytes(run.run_dir() + "/summary.json", "{\"exit_code\": 0}");
  auto launch =
      run.start("rank=0 call=unlink path=/checkpoints/step-00000099 nth=1+ do=sleep:2", 4,
                {fmt::format("--run.hang_timeout={}", kTimeoutSeconds), "--run.overwrite=true"});
  const Outcome outcome = launch->wait(60.0);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_GE(launch->struck().size(), 5u);
  EXPECT_FALSE(fs::exists(old));
}

}  // namespace
}  // namespace utrain
