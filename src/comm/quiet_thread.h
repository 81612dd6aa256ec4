// Threads that get no signals but those they raise themselves by a fault (a mapped file that was
// cut): all others are the main thread's.
#pragma once

#include <signal.h>

#include <future>
#include <thread>
#include <utility>

namespace utrain {

// While it lives, what this thread starts is quiet.
class StartsQuietly {
 public:
  StartsQuietly() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT})
      sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~StartsQuietly() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  StartsQuietly(const StartsQuietly&) = delete;
  StartsQuietly& operator=(const StartsQuietly&) = delete;

 private:
  sigset_t before_;
};

template <class F>
std::thread quiet_thread(F&& work) {
  const StartsQuietly quietly;
  return std::thread(std::forward<F>(work));
}

// std::async in a thread of its own: its future waits for it.
template <class F>
auto quiet_async(F&& work) {
  const StartsQuietly quietly;
  return std::async(std::launch::async, std::forward<F>(work));
}

}  // namespace utrain
