// A thread that gets no signals: they are the main thread's.
#pragma once

#include <signal.h>

#include <thread>
#include <utility>

namespace utrain {

template <class F>
std::thread quiet_thread(F&& work) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  struct Restore {
    sigset_t* mask;
    ~Restore() { pthread_sigmask(SIG_SETMASK, mask, nullptr); }
  } restore{&before};
  return std::thread(std::forward<F>(work));
}

}  // namespace utrain
