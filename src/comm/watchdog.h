// The watchdog of a rank: World has one, from before MPI starts until it has ended. The main thread
// tells it what it does, in shared memory that all ranks of the node see; a thread of its own judges
// (verdict.h), and ends the process with 70 where the ranks hang, whatever the main thread is
// blocked in. One line from one rank names the suspect; every rank that can leaves its last calls in
// RUN/crash/rank-00002.txt.
//   What is waited for is covered so: calls of MPI and NCCL, files, locks, GPU work and threads are
// all waited for by the main thread, which shows no progress meanwhile. A call that waits for ranks
// is an InCall, and waits() as it polls; work that may be long shows progress() as it goes, and so
// does what is read and written, a MB at a time, outside of steps. What a thread writes beside the
// steps is a SaveWatch::Writing, and hangs by itself. Time in which the whole process stood still (a
// suspended job) does not count.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/board.h"
#include "comm/save_watch.h"
#include "comm/stamp.h"

namespace utrain {

class Watchdog {
 public:
  static constexpr int64_t kTimeout = 600;     // s
  static constexpr int64_t kLeastOfStep = 60;  // s, and 10 x the slowest step, once it is known

  // timeout, s: 0 = the two above. rank and who it is, as far as known before MPI starts.
  Watchdog(int64_t timeout, int rank, const std::string& who);
  ~Watchdog();  // the process is no longer watched; others see that it has left
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void set_timeout(int64_t timeout);  // from now on
  // Where this rank stands. board: of its node, with the rank of each slot; local_rank's is its own.
  struct Place {
    int rank, local_rank, node, n_nodes;
    std::vector<int> others;  // ranks of other nodes
  };
  void join(std::shared_ptr<Board> board, const Place& place);
  void set_places(std::vector<std::string> places);  // [ranks] "HOST (GPU 0, NAME)"
  // Where crash/ and heartbeats/ go; they are there, or can be made.
  void set_directory(const std::string& run_dir);

  void enter(RunPhase phase, int64_t step = 0);
  void progress();  // from any thread
  void waits();     // the main thread, each time it has looked in vain for what others send
  void step_took(double seconds);
  SaveWatch& saves();  // for what another thread writes

  class InCall {
   public:
    InCall(Watchdog& watchdog, CallKind kind, int64_t n_elem = 0) : watchdog_(watchdog) {
      watchdog_.begin_call(kind, n_elem);
    }
    ~InCall() { watchdog_.end_call(); }
    InCall(const InCall&) = delete;
    InCall& operator=(const InCall&) = delete;

   private:
    Watchdog& watchdog_;
  };

  // To be done before the process ends itself, while others may do the same; nobody waits for it
  // longer than kLastWords. It must not touch what the main thread may hold locked.
  void at_hang(const void* key, std::function<void()> work);
  void forget(const void* key);
  static constexpr double kLastWords = 0.75;  // s

 private:
  struct State;
  class Watcher;
  void begin_call(CallKind kind, int64_t n_elem);
  void end_call();
  void show(const Stamp& stamp);
  int64_t limit_ms(RunPhase phase) const;

  std::shared_ptr<State> state_;  // with what outlives this where a thread is stuck
  RankSlot* slot_ = nullptr;      // of the board
  Stamp now_;
  int64_t timeout_;
  double slowest_step_ = 0.0;
  std::unique_ptr<Watcher> watcher_;
};

}  // namespace utrain
