// What is known of ranks of other nodes by their files.
#include "comm/heartbeats.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "io_files.h"

namespace utrain {
namespace {

namespace fs = std::filesystem;

std::string beat_of(const TempDir& dir, int rank) {
  fs::create_directories(dir / "heartbeats");
  return dir / fmt::format("heartbeats/rank-{:05}", rank);
}

// A file that is read no further than to here, until let_go().
class Gate {
 public:
  explicit Gate(const std::string& path) : path_(path) { mkfifo(path.c_str(), 0600); }
  void wait_for_reader() { file_ = open(path_.c_str(), O_WRONLY | O_CLOEXEC); }
  void let_go() {
    unlink(path_.c_str());  // before: it is not waited at twice
    close(file_);
  }

 private:
  std::string path_;
  int file_ = -1;
};

TEST(Heartbeats, WhatWasReadBeforeWatchingBeganAnewIsNotKnown) {
  const TempDir dir, elsewhere;
  const auto board = std::make_shared<Board>();
  const std::string file = beat_of(dir, 1), kept = beat_of(elsewhere, 1);
  const Heartbeats other(elsewhere.str(), board, 0, 1, {});
  fs::copy_file(kept, file);
  Gate second(beat_of(dir, 2)), third(beat_of(dir, 3));

  Heartbeats heartbeats(dir.str(), board, 0, 0, {1, 2, 3});
  heartbeats.watch(true);
  second.wait_for_reader();  // 1 has been read
  fs::remove(file);
  heartbeats.watch(false);
  heartbeats.watch(true);
  second.let_go();
  third.wait_for_reader();
  third.let_go();
  std::this_thread::sleep_for(
      std::chrono::duration<double>(Heartbeats::kStillAfter + 0.2));  // nothing is told earlier
  EXPECT_TRUE(heartbeats.views().empty());

  fs::copy_file(kept, file);
  for (int i = 0; i < 1000 && heartbeats.views().empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::vector<RankView> views = heartbeats.views();
  ASSERT_EQ(views.size(), 1u);
  EXPECT_EQ(views[0].rank, 1);
}

}  // namespace
}  // namespace utrain
