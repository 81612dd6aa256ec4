// What ranks of other nodes were last seen doing: a file of 64 bytes a rank in RUN/heartbeats,
// written once a second; those of others are read only while somebody asks, since a healthy run
// needs none of them. All file work is on a thread of its own: a frozen file system holds up nobody,
// it only makes the others unknown.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/board.h"
#include "comm/verdict.h"

namespace utrain {

class Heartbeats {
 public:
  // A rank whose file does not change for so long stands still.
  static constexpr double kStillAfter = 2.5;  // s

  // others: ranks of other nodes. own: the slot of this rank.
  Heartbeats(const std::string& run_dir, std::shared_ptr<Board> board, int own_slot, int rank,
             std::vector<int> others);
  ~Heartbeats();
  Heartbeats(const Heartbeats&) = delete;
  Heartbeats& operator=(const Heartbeats&) = delete;

  // For the file of this rank: it has been silent for so long; it is stuck in its call.
  void set_silent(double seconds, bool is_stuck);
  // Whether to read. Starting again forgets what was known.
  void watch(bool on);
  // Of the ranks whose files there are. Empty until they have been watched for kStillAfter, and
  // where the last reading is older than that.
  std::vector<RankView> views() const;
  bool is_stuck() const;  // watched for longer, and cannot tell

 private:
  struct State;
  static void run(std::shared_ptr<State> state);

  std::shared_ptr<State> state_;  // outlives this where the file system is frozen
};

}  // namespace utrain
