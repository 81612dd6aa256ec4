// Memory that the ranks of a node share, where each shows what it does: one slot a rank, written by
// that rank alone, and who gave the run up. Plain shared memory, not a window of MPI: it must be
// readable while MPI starts, hangs and ends.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/stamp.h"

namespace utrain {

// Relaxed atomics: a reader may see two stamps mixed for a moment, which no verdict rests upon.
struct alignas(64) RankSlot {
  using Word = std::atomic<int64_t>;
  static_assert(Word::is_always_lock_free);
  enum State : int64_t { absent, here, has_left };

  Word state, rank;  // of the world
  Word n_signs;      // of progress so far
  Word n_beats;      // of its watchdog thread
  Word n_polls;      // of its main thread, for what other ranks send
  Word limit_ms;     // without progress
  Word phase, step, number, kind, n_elem, inside;
  Word has_spoken;  // its last words are written

  Stamp stamp() const;
};

class Board {
 public:
  struct Shared {
    std::atomic<int64_t> giver_up;  // 1 + the local rank that gave the run up; 0 = nobody
    RankSlot slots[1];
  };

  // Of this process alone.
  Board();
  // name "": makes it anew, for n_slots ranks. Others open it by its name(), then unlink() once all
  // have. Fails with io.
  Board(const std::string& name, int n_slots);
  ~Board();
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  const std::string& name() const { return name_; }
  void unlink();
  int size() const { return n_slots_; }
  RankSlot& slot(int i) const { return shared_->slots[i]; }
  std::atomic<int64_t>& giver_up() const { return shared_->giver_up; }

 private:
  std::string name_;
  int n_slots_ = 1;
  size_t bytes_ = 0;
  Shared* shared_ = nullptr;
  bool is_linked_ = false;
};

}  // namespace utrain
