// Signals are the main thread's; a fault stays with the thread that made it.
#include "comm/quiet_thread.h"

#include <gtest/gtest.h>

namespace utrain {
namespace {

sigset_t blocked() {
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  return mask;
}

void expect_quiet(const sigset_t& mask) {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP, SIGCHLD})
    EXPECT_EQ(sigismember(&mask, signal), 1) << signal;
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT})
    EXPECT_EQ(sigismember(&mask, fault), 0) << fault;
}

TEST(QuietThread, GetsNoSignalsButItsOwnFaults) {
  sigset_t of_thread;
  quiet_thread([&] { of_thread = blocked(); }).join();
  expect_quiet(of_thread);
  expect_quiet(quiet_async([] { return blocked(); }).get());
  EXPECT_THROW(quiet_async([] { throw 1; }).get(), int);
  const sigset_t own = blocked();
  for (const int signal : {SIGTERM, SIGUSR1, SIGBUS}) EXPECT_EQ(sigismember(&own, signal), 0);
}

}  // namespace
}  // namespace utrain
