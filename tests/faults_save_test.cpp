// A checkpoint that is written beside the steps on a disk that stands still, or is only slow: the
// first is over within the timeout and three seconds, with exit code 70 and one line that names rank
// and file, whatever the steps do meanwhile; the second is no hang. On several nodes the test starts
// itself in the place of ./utrain.
#include "comm/save_watch.h"
#include "comm/world.h"
#include "faults/fault_run.h"

namespace utrain {
namespace {

constexpr const char* kRole = "UTRAIN_FAULTS_SAVE_ROLE";
constexpr double kTimeoutSeconds = 3.0, kMoreSeconds = 3.0;

void expect_told(const Outcome& outcome, int rank, const std::string& file) {
  EXPECT_EQ(outcome.exit_code, 70) << outcome.text();
  const Words lines = outcome.error_lines();
  ASSERT_EQ(lines.size(), 1u) << outcome.text();
  EXPECT_TRUE(lines[0].starts_with(fmt::format("utrain: error: rank {} on ", rank))) << lines[0];
  EXPECT_NE(lines[0].find("in writing checkpoint step 5, file "), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find(fmt::format("/{};", file)), std::string::npos) << lines[0];
}

TEST(SaveWatch, IsSilentSinceTheLastSign) {
  SaveWatch watch;
  EXPECT_FALSE(watch.look(1.0).has_value());
  watch.set_limit(5.0);
  std::optional<SaveWatch::Writing> save(std::in_place, watch, 7);
  EXPECT_EQ(watch.look(4.0)->silent, 0.0);
  EXPECT_EQ(watch.look(4.0)->silent, 4.0);
  EXPECT_FALSE(watch.look(0.5)->hangs());
  save->at("/run/a");
  EXPECT_EQ(watch.look(4.0)->silent, 0.0);
  EXPECT_TRUE(watch.look(5.0)->hangs());
  EXPECT_EQ(watch.look(0.0)->file, "/run/a");
  save.reset();
  EXPECT_FALSE(watch.look(9.0).has_value());
  save.emplace(watch, 8);
  EXPECT_EQ(watch.look(9.0)->silent, 0.0);
}

std::unique_ptr<FaultLaunch> start(const FaultRun& run, const std::string& faults,
                                   const std::string& more = fmt::format("--train.max_steps={}",
                                                                         FaultRun::kSteps)) {
  return run.start(faults, 4, {fmt::format("--run.hang_timeout={}", kTimeoutSeconds), more});
}

// The next save is far: steps take seconds by then.
TEST(Saves, ThatDoNotMoveAreEndedBesideTheSteps) {
  struct Save {
    int rank;
    const char *file, *fault;
  };
  const std::vector<Save> saves = {
      {2, "shard-00002-of-00004.h5", "call=write path=/checkpoints/step-00000005 nth=2"},
      {0, "adapter/adapter_model.safetensors",
       "call=fsync path=/adapter/adapter_model.safetensors nth=1"},
      {0, "manifest.json", "call=rename path=/manifest.json nth=1"},
  };
  Campaign campaign("F3 saves that hang");
  FaultRun run;
  for (const Save& save : saves) {
    SCOPED_TRACE(save.fault);
    run.clear();
    auto launch =
        run.start(fmt::format("rank={} {} do=sleep:1000; "
                              "rank=1 call=MPI_Isend nth=60+ do=sleep:0.5",
                              save.rank, save.fault),
                  4, {fmt::format("--run.hang_timeout={}", kTimeoutSeconds), "--eval.every=0"});
    const Outcome outcome = launch->wait(60.0);
    expect_told(outcome, save.rank, save.file);
    expect_over_soon(*launch, outcome, kTimeoutSeconds + kMoreSeconds);
    EXPECT_GT(run.last_step(), 6);
    EXPECT_LT(run.last_step(), 10);  // so it was not the next save that noticed
    campaign.count("hangs");
  }
  run.clear();
}

// The last one, which the end of the run waits for.
TEST(Saves, ThatDoNotMoveAreEndedWhereTheyAreWaitedFor) {
  FaultRun run;
  auto launch = start(run, "rank=3 call=fsync path=/checkpoints/step-00000005 nth=1 do=sleep:1000",
                      "--train.max_steps=5");
  const Outcome outcome = launch->wait(60.0);
  expect_told(outcome, 3, "shard-00003-of-00004.h5");
  expect_over_soon(*launch, outcome, kTimeoutSeconds + kMoreSeconds);
}

// A disk that takes its time for each write and sync moves.
TEST(Saves, OnASlowDiskAreNoHang) {
  FaultRun run;
  auto launch = start(run,
                      "rank=3 call=write path=/checkpoints/step-00000005 nth=1+ do=sleep:0.15; "
                      "rank=3 call=fsync path=/checkpoints/step-00000005 nth=1+ do=sleep:1.5; "
                      "rank=0 call=file path=/checkpoints/step-00000040 nth=1+ do=sleep:0.08");
  const Outcome outcome = launch->wait(120.0);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_GT(launch->struck().size(), 40u);
  EXPECT_GT(outcome.seconds, 2 * kTimeoutSeconds);
  EXPECT_TRUE(run.result().adapter == FaultRun::reference().adapter);
}

// Where one rank's disk is full, what the others still write is waited for: that is no hang either.
// Steps are slow, so that it is noticed in one and not by the next save.
TEST(Saves, ThatFailWaitForThoseThatMove) {
  FaultRun run;
  auto launch = start(run,
                      "rank=1 call=write path=/checkpoints/step-00000005 nth=1 do=enospc; "
                      "rank=3 call=write path=/checkpoints/step-00000005 nth=1+ do=sleep:1.5; "
                      "rank=1 call=MPI_Isend nth=60+ do=sleep:0.1");
  const Outcome outcome = launch->wait(60.0);
  EXPECT_EQ(outcome.exit_code, 74) << outcome.text();
  EXPECT_NE(outcome.err.find("shard-00001-of-00004.h5"), std::string::npos) << outcome.text();
  EXPECT_GT(outcome.seconds, 2 * kTimeoutSeconds);
}

// Two nodes of two ranks, whose shared file system takes no last words either.
int run_rank(int argc, char** argv) {
  const World world(&argc, &argv, {.ranks_per_node = 2, .hang_timeout = 2});
  world.watch_in(argv[1]);
  std::thread writer([&world] {
    if (world.rank() != 2) return;
    const SaveWatch::Writing save(world.watchdog().saves(), 5);
    save.at("/frozen/shard");
    std::this_thread::sleep_for(std::chrono::seconds(60));
  });
  for (int i = 0; i < 600; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    world.barrier();
  }
  writer.join();
  return 0;
}

TEST(Saves, OnAFrozenDiskAreToldOnSeveralNodes) {
  const TempDir dir, state;
  const std::string run_dir = fs::canonical(dir.str());
  ::setenv(kRole, "1", 1);
  Launch launch(4, {run_dir}, fs::read_symlink("/proc/self/exe").string(),
                {"LD_PRELOAD=" + fault_library(), "UTRAIN_FAULT_DIR=" + run_dir,
                 "UTRAIN_FAULT_STATE=" + state.str(),
                 "UTRAIN_FAULT=call=file path=/crash nth=1+ do=sleep:1000"});
  ::unsetenv(kRole);
  const Outcome outcome = launch.wait(60.0);
  expect_told(outcome, 2, "shard");
  EXPECT_LT(outcome.seconds, 3.0 + 2.0 + kMoreSeconds);  // 3 s to start four ranks
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  if (std::getenv(utrain::kRole) != nullptr) return utrain::run_rank(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
