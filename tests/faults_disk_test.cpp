// The disk is full, over quota or broken at some write of a save: the run ends within 10 s with exit
// code 74 and a line that names file and bytes, and goes on later from the last good checkpoint.
#include <sys/mount.h>
#include <sys/resource.h>

#include "faults/fault_run.h"

namespace utrain {
namespace {

constexpr double kOverSeconds = 10.0;

void expect_told(const Outcome& outcome, const std::string& place) {
  EXPECT_EQ(outcome.exit_code, 74) << outcome.text();
  const Words lines = outcome.error_lines();
  EXPECT_EQ(lines.size(), 1u) << outcome.text();
  for (const std::string& line : lines) {
    EXPECT_NE(line.find(place), std::string::npos) << line;
    EXPECT_NE(line.find("; "), std::string::npos) << "no remedy: " << line;
  }
}

TEST(Disk, FailsAtSomeCallOfASave) {
  Campaign campaign("F4 disk faults");
  FaultRun run;
  const Words errors = {"enospc", "eio", "edquot"};
  const auto of_rank_0 = static_cast<int64_t>(run.calls_of(0, "/checkpoints").size());
  const auto of_others = static_cast<int64_t>(run.calls_of(2, "/checkpoints").size());
  for (int i = 0; i < count_of(4, 60) && !testing::Test::HasFailure(); ++i) {
    const auto rank = i % 2 == 0 ? 0 : campaign.below(4);
    const bool writes_alone = campaign.below(2) == 0;
    // Half-way on: two checkpoints are there.
    const int64_t calls = rank == 0 ? of_rank_0 : of_others;
    const int64_t nth = calls / 2 + campaign.below(calls / 4);
    // A full disk stays full.
    const std::string fault = fmt::format("rank={} call={} path=/checkpoints/step- nth={}+ do={}",
                                          rank, writes_alone ? "write" : "file",
                                          writes_alone ? nth / 3 : nth, campaign.one_of(errors));
    SCOPED_TRACE(fault);
    run.clear();
    auto launch = run.start(fault);
    const Outcome outcome = launch->wait();
    ASSERT_GE(launch->struck().size(), 1u) << outcome.text();
    expect_told(outcome, "checkpoints");
    expect_over_soon(*launch, outcome, kOverSeconds);
    EXPECT_FALSE(run.checkpoint_steps().empty());
    campaign.count(launch->struck()[0].action);
    campaign.count("faults");
    run.expect_finishes_as_if_nothing_was();
  }
}

TEST(Disk, MessageHasPathAndBytes) {
  FaultRun run;
  auto launch = run.start("rank=2 call=write path=/checkpoints/step-00000010 nth=2 do=enospc");
  const Outcome outcome = launch->wait();
  expect_told(outcome, "shard-00002");
  EXPECT_NE(outcome.err.find("No space left"), std::string::npos) << outcome.text();
  EXPECT_NE(outcome.err.find("bytes"), std::string::npos) << outcome.text();
  run.expect_finishes_as_if_nothing_was();
}

TEST(Disk, MetricsCannotBeWritten) {
  FaultRun run;
  auto launch = run.start("rank=0 call=write path=/metrics.jsonl nth=22+ do=enospc");
  const Outcome outcome = launch->wait();
  expect_told(outcome, "metrics.jsonl");
  run.expect_finishes_as_if_nothing_was();
}

// A file system of its own: root alone may mount one.
class SmallDisk {
 public:
  SmallDisk(const std::string& at, const std::string& size) : at_(at) {
    fs::create_directories(at);
    mounted_ = ::mount("none", at.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool is_there() const { return mounted_; }
  void resize(const std::string& size) const {
    ::mount("none", at_.c_str(), "tmpfs", MS_REMOUNT, ("size=" + size).c_str());
  }

 private:
  std::string at_;
  bool mounted_ = false;
};

TEST(Disk, ARealSmallOne) {
  FaultRun run;
  const SmallDisk disk(run.run_dir(), "64m");
  if (!disk.is_there()) GTEST_SKIP() << "no right to mount a file system: root alone may";
  const Words arguments = {"--run.dir=" + run.run_dir() + "/run"};
  const auto outcome_of = [&] { return run.go_on(4, arguments); };

  // So small that the first save does not fit: told before it is begun, with need and space.
  disk.resize("100k");
  Outcome outcome = outcome_of();
  expect_told(outcome, "checkpoints");
  EXPECT_NE(outcome.err.find("bytes"), std::string::npos) << outcome.text();
  EXPECT_LT(outcome.seconds, kOverSeconds);

  // Filled by someone else, in the middle of the run.
  disk.resize("64m");
  auto launch =
      std::make_unique<Launch>(4, run.arguments({arguments[0], "--train.max_steps=4000"}));
  const std::string metrics = run.run_dir() + "/run/metrics.jsonl";
  for (int i = 0; i < 3000 && read_metrics(metrics).size() < 30; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const auto begin = std::chrono::steady_clock::now();
  write_bytes(run.run_dir() + "/filler", std::string(64 << 20, 'x'));
  outcome = launch->wait();
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(),
            kOverSeconds);
  expect_told(outcome, run.run_dir());
  fs::remove(run.run_dir() + "/filler");
  // The schedule hangs on max_steps, so the undisturbed run is another one.
  outcome = run.go_on(4, {arguments[0], "--train.max_steps=4000", "--run.max_hours=0.0003"});
  EXPECT_EQ(outcome.exit_code, 75) << outcome.text();
}

}  // namespace
}  // namespace utrain
