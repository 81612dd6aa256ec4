// A rank of ./utrain that is stopped or killed in each phase of a run: the job is over soon after,
// with the right code, and says which rank it was.
#include <gtest/gtest.h>

#include "launch.h"

namespace utrain {
namespace {

constexpr int kTimeout = 3;      // s
constexpr double kOver = 3.0;    // s after it
constexpr double kKilled = 5.0;  // s until a launcher has ended the others

// The quickstart on 4 ranks.
std::vector<std::string> arguments(const std::string& run_dir,
                                   const std::vector<std::string>& more = {},
                                   int timeout = kTimeout,
                                   const std::string& eval = "definitions_eval") {
  const std::string at = source_dir() + "/input/";
  std::vector<std::string> words = {at + "quickstart.toml",
                                    "--run.dir=" + run_dir,
                                    "--model.path=" + at + "models/tiny-llama",
                                    "--data.train=" + at + "data/definitions_train.h5",
                                    "--data.eval=" + at + "data/" + eval + ".h5",
                                    fmt::format("--run.hang_timeout={}", timeout)};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

void wait_for_lines(Launch& launch, const std::string& run_dir, size_t n) {
  while (launch.is_running() && launch.seconds() < 60.0 &&
         read_metrics(run_dir + "/metrics.jsonl").size() < n)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

// What remains of a job whose rank was stopped: in time, one line with all the words, 70.
void expect_named(Launch& launch, double stopped_at, const std::vector<std::string>& words) {
  const Outcome run = launch.wait();
  EXPECT_EQ(run.exit_code, 70) << run.text();
  EXPECT_LT(run.seconds - stopped_at, kTimeout + kOver) << run.text();
  const std::vector<std::string> lines = run.error_lines();
  ASSERT_EQ(lines.size(), 1u) << run.text();
  for (const std::string& word : words)
    EXPECT_NE(lines[0].find(word), std::string::npos) << word << "\n" << lines[0];
}

void expect_files(const std::string& run_dir, const std::vector<int>& ranks) {
  for (const int r : ranks) {
    const std::string text = read_bytes(fmt::format("{}/crash/rank-{:05}.txt", run_dir, r));
    EXPECT_NE(text.find("in collective"), std::string::npos) << r << ": " << text;
  }
}

TEST(StoppedRank, AsSoonAsItIsThere) {
  const TempDir dir;
  Launch launch(4, arguments(dir.str()));
  launch.send(2, SIGSTOP);
  expect_named(launch, launch.seconds(), {"no progress for"});
}

TEST(StoppedRank, InAStep) {
  for (const int rank : {0, 3}) {
    const TempDir dir;
    Launch launch(4, arguments(dir.str()));
    wait_for_lines(launch, dir.str(), 3);
    launch.send(rank, SIGSTOP);
    expect_named(launch, launch.seconds(),
                 {fmt::format("rank {} on ", rank), "the process stands still", " in step ",
                  dir.str() + "/crash"});
    std::vector<int> others = {0, 1, 2, 3};
    std::erase(others, rank);
    expect_files(dir.str(), others);
  }
}

TEST(StoppedRank, InAnEvaluation) {
  const TempDir dir;
  Launch launch(4, arguments(dir.str(), {"--eval.every=1"}, kTimeout, "definitions_train"));
  wait_for_lines(launch, dir.str(), 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // of several seconds
  launch.send(1, SIGSTOP);
  expect_named(launch, launch.seconds(), {"rank 1 on ", "evaluate at step 1"});
  expect_files(dir.str(), {0, 2, 3});
}

TEST(StoppedRank, UnderZero3) {
  const TempDir dir;
  Launch launch(4, arguments(dir.str(), {"--parallel.strategy=zero3"}));
  wait_for_lines(launch, dir.str(), 2);
  launch.send(2, SIGSTOP);
  expect_named(launch, launch.seconds(), {"rank 2 on ", " in step "});
}

TEST(KilledRank, EndsTheJob) {
  for (const int rank : {0, 2}) {
    const TempDir dir;
    Launch launch(4, arguments(dir.str()));
    wait_for_lines(launch, dir.str(), 2);
    const double killed_at = launch.seconds();
    launch.send(rank, SIGKILL);
    const Outcome run = launch.wait();
    EXPECT_EQ(run.exit_code, 128 + SIGKILL) << run.text();
    EXPECT_LT(run.seconds - killed_at, kKilled) << run.text();
    EXPECT_TRUE(run.error_lines().empty()) << run.text();
  }
}

// Whoever is killed, the launcher too: no memory stays behind, since it has no name.
TEST(SharedMemory, HasNoFiles) {
  const TempDir dir;
  Launch launch(2, arguments(dir.str()));
  wait_for_lines(launch, dir.str(), 2);
  std::istringstream maps(read_bytes(fmt::format("/proc/{}/maps", launch.process_of(1))));
  int n_shared = 0;
  for (std::string line; std::getline(maps, line);) {
    const bool is_file = line.find(" /dev/shm/") != std::string::npos;
    n_shared += is_file || line.find("/SYSV") != std::string::npos ? 1 : 0;
    EXPECT_TRUE(!is_file || line.ends_with("(deleted)")) << line;
  }
  EXPECT_GE(n_shared, 3);  // Open MPI's of each rank, and the watchdogs'
}

TEST(SlowRun, IsNoHang) {
  const TempDir dir;
  const Outcome run =
      launch(4, arguments(dir.str(), {"--train.max_steps=10", "--eval.every=2"}, 20));
  EXPECT_EQ(run.exit_code, 0) << run.text();
  EXPECT_FALSE(std::filesystem::exists(dir / "crash"));
}

}  // namespace
}  // namespace utrain
