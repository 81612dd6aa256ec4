// Asked to stop, by a signal to one rank, run.max_hours or a file STOP, at any moment: all ranks
// save at the next step and leave with 75; a second signal leaves at once. What is started again
// goes on to the same bits.
#include "faults/fault_run.h"

namespace utrain {
namespace {

constexpr int kStoppedEarly = 75;

struct Moment {
  const char* name;
  std::string call;
};

const std::vector<Moment>& moments() {
  static const std::vector<Moment> all = {
      {"start", "call=MPI_Iallreduce nth=6"},
      {"step", "call=MPI_Isend nth=100"},
      {"save", "call=write path=/checkpoints/step-00000015 nth=2"},
  };
  return all;
}

// Saved where it stopped: nothing is lost.
void expect_stopped_and_saved(const FaultRun& run, const Outcome& outcome) {
  EXPECT_EQ(outcome.exit_code, kStoppedEarly) << outcome.text();
  ASSERT_FALSE(run.checkpoint_steps().empty()) << outcome.text();
  EXPECT_EQ(run.checkpoint_steps().back(), run.last_step()) << outcome.text();
  EXPECT_LT(run.last_step(), FaultRun::kSteps);
  EXPECT_GT(run.last_step(), 0);
}

TEST(Stopped, ByASignalToOneRank) {
  Campaign campaign("F6 signals");
  FaultRun run;
  const std::vector<int> signals = {SIGUSR1, SIGTERM, SIGINT};
  const int n = count_of(4, 27);
  for (int i = 0; i < n && !testing::Test::HasFailure(); ++i) {
    const Moment& moment = moments()[static_cast<size_t>(i) % 3];
    const int signal = signals[static_cast<size_t>(i / 3 + i) % 3];
    const auto rank = campaign.below(4);
    const std::string fault = fmt::format("rank={} {} do=signal:{}", rank, moment.call, signal);
    SCOPED_TRACE(fmt::format("{}: {}", moment.name, fault));
    run.clear();
    auto launch = run.start(fault);
    const Outcome outcome = launch->wait();
    ASSERT_EQ(launch->struck().size(), 1u) << outcome.text();
    if (moment.name == std::string("start")) {  // before the first step: nothing to save
      EXPECT_EQ(outcome.exit_code, kStoppedEarly) << outcome.text();
      EXPECT_EQ(run.last_step(), 0);
    } else {
      expect_stopped_and_saved(run, outcome);
    }
    campaign.count("signals");
    run.expect_finishes_as_if_nothing_was();
  }
}

// Slurm may send its warning while the job still starts: the run leaves as soon as it could begin.
TEST(Stopped, BeforeMpiRuns) {
  FaultRun run;
  for (const int signal : {SIGUSR1, SIGTERM}) {
    SCOPED_TRACE(signal);
    run.clear();
    const std::string fault = fmt::format("rank=2 call=MPI_Init_thread nth=1 do=signal:{}", signal);
    auto launch = run.start(fault);
    const Outcome outcome = launch->wait();
    ASSERT_EQ(launch->struck().size(), 1u) << outcome.text();
    EXPECT_EQ(outcome.exit_code, kStoppedEarly) << outcome.text();
    EXPECT_EQ(run.last_step(), 0);
    // What does not train has nothing to save.
    const std::string dump = "--dump=" + run.file("logits.safetensors");
    for (const std::string& command : {std::string("--check"), std::string("--plan"), dump}) {
      const Outcome over =
          run.start(fmt::format("rank=0 call=MPI_Init_thread nth=1 do=signal:{}", signal), 1,
                    {command})
              ->wait();
      EXPECT_EQ(over.exit_code, 128 + signal) << command << "\n" << over.text();
    }
  }
  run.expect_finishes_as_if_nothing_was();
}

// Two signals further apart than launchers send one twice.
TEST(Stopped, TwiceAtOnce) {
  Campaign campaign("F6 second signals");
  FaultRun run;
  const Words points = {"call=MPI_Isend nth=100",
                        "call=write path=/checkpoints/step-00000015 nth=2"};
  for (int i = 0; i < count_of(2, 6) && !testing::Test::HasFailure(); ++i) {
    const std::string at = points[static_cast<size_t>(i) % 2];
    const int signal = i % 3 == 0 ? SIGUSR1 : i % 3 == 1 ? SIGTERM : SIGINT;
    run.clear();
    // The first while a rank is held up for three seconds, the second in the midst of that.
    auto launch =
        run.start(fmt::format("rank=0 {} do=signal:{}; rank=2 {} do=sleep:3", at, signal, at));
    for (int k = 0; k < 2000 && launch->struck().size() < 2; ++k)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ASSERT_EQ(launch->struck().size(), 2u);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const auto begin = std::chrono::steady_clock::now();
    ::kill(launch->pid_of(0), signal);
    const Outcome outcome = launch->wait();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    EXPECT_NE(outcome.exit_code, 0) << outcome.text();
    EXPECT_LT(took.count(), 2.0) << outcome.text();
    campaign.count("second signals");
    run.expect_finishes_as_if_nothing_was();
  }
}

TEST(Stopped, BySignalThroughTheLauncher) {
  FaultRun run;
  auto launch = run.start("rank=1 call=MPI_Isend nth=100 do=sleep:1");
  for (int k = 0; k < 2000 && launch->struck().empty(); ++k)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::kill(launch->launch().pid(), SIGUSR1);
  expect_stopped_and_saved(run, launch->wait());
  run.expect_finishes_as_if_nothing_was();
}

TEST(Stopped, ByTheFileStop) {
  FaultRun run;
  auto launch = run.start("rank=1 call=MPI_Isend nth=100 do=sleep:1.5");
  for (int k = 0; k < 2000 && launch->struck().empty(); ++k)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  write_bytes(run.run_dir() + "/STOP", "");
  const Outcome outcome = launch->wait();
  expect_stopped_and_saved(run, outcome);
  EXPECT_FALSE(fs::exists(run.run_dir() + "/STOP")) << "it stops one run";
  run.expect_finishes_as_if_nothing_was();
}

TEST(Stopped, ByMaxHours) {
  FaultRun run;
  const Outcome outcome =
      run.start("rank=1 call=MPI_Isend nth=100 do=sleep:2.5", 4, {"--run.max_hours=0.0006"})
          ->wait();
  expect_stopped_and_saved(run, outcome);
  run.expect_finishes_as_if_nothing_was();
}

}  // namespace
}  // namespace utrain
