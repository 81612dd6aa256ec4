// What a rank does when it gives up. When it does: watchdog_test.cpp.
#include "comm/last_words.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <thread>

#include "io_files.h"

namespace utrain {
namespace {

TEST(LastWords, AreBounded) {
  const auto done = std::make_shared<std::atomic<int>>(0);
  const auto begin = std::chrono::steady_clock::now();
  run_bounded({[done] { ++*done; }, [] { std::this_thread::sleep_for(std::chrono::seconds(20)); },
               [done] { ++*done; }},
              0.5);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_EQ(*done, 2);
}

TEST(LastWords, OneOfThoseWhoClaimAFileGetsIt) {
  const TempDir dir;
  EXPECT_EQ(claim_file(dir / "crash/hang.txt", "text"), Claim::mine);
  EXPECT_EQ(claim_file(dir / "crash/hang.txt", "other"), Claim::taken);
  EXPECT_EQ(claim_file(dir / "no/such/hang.txt", "text"), Claim::unknown);
  EXPECT_EQ(read_bytes(dir / "crash/hang.txt"), "text\n");
}

TEST(LastWords, OneProcessOfANodeSpeaksForAll) {
  ::unsetenv("PMIX_NAMESPACE");
  EXPECT_EQ(claim_on_node("test"), Claim::unknown);
  ::setenv("PMIX_NAMESPACE", fmt::format("test.{}", ::getpid()).c_str(), 1);
  const pid_t other = ::fork();
  if (other == 0) {
    const bool is_mine = claim_on_node("test") == Claim::mine;
    const bool is_taken = claim_on_node("test") == Claim::taken;
    ::_exit(is_mine && is_taken && claim_on_node("other") == Claim::mine ? 0 : 1);
  }
  int status = -1;
  ::waitpid(other, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(claim_on_node("test"), Claim::mine) << "who held it is gone";
  ::unsetenv("PMIX_NAMESPACE");
}

}  // namespace
}  // namespace utrain
