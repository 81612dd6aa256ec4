// The thread of a Watchdog, which looks at all ranks of the node, judges, and ends the process, and
// what the main thread hands over to it. Included by watchdog.cpp and watcher.cpp only.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/call_ring.h"
#include "comm/heartbeats.h"
#include "comm/verdict.h"
#include "comm/watchdog.h"

namespace utrain {

inline double to_seconds(int64_t ms) {
  return 1e-3 * static_cast<double>(ms);
}

// Also what threads that are left behind use. The mutex guards all but ring and saves.
struct Watchdog::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool ends = false;
  std::shared_ptr<Board> board = std::make_shared<Board>();
  Place place{0, 0, 0, 1, {}};
  bool has_joined = false;
  std::vector<std::string> places;
  std::string who, crash_dir;
  std::shared_ptr<Heartbeats> heartbeats;
  std::map<const void*, std::function<void()>> at_hang;
  CallRing ring;
  SaveWatch saves;
};

// The thread. It takes no lock for longer than a copy, touches no file and waits for nobody.
class Watchdog::Watcher {
 public:
  explicit Watcher(std::shared_ptr<State> state);
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

 private:
  // What was last seen of a slot, and for how long it has been the same.
  struct Seen {
    int64_t n_signs = -1, n_beats = -1, n_polls = -1;
    double silent = 0.0, still = 0.0, unpolled = 0.0;
  };

  void run();
  void look(double elapsed);
  // Outside of steps whatever is read and written shows progress by itself.
  void look_at_files(double elapsed);
  void look_at_save(double elapsed);
  // The lock is held.
  std::string own_place() const;
  std::vector<RankView> node_views(double elapsed);
  // Other nodes are looked at when this one alone would soon be given up.
  void add_other_nodes(std::vector<RankView>& views);
  std::string text_of(const Verdict& verdict, const std::vector<RankView>& views);
  // text: what to say; "" = another rank says it. Does not return.
  [[noreturn]] void give_up(std::string text);
  // Of other nodes nothing is known: their files get all the time.
  bool all_have_spoken(bool with_files) const;

  std::shared_ptr<State> state_;
  // Copies of what the state holds.
  std::shared_ptr<Board> board_;
  Place place_{0, 0, 0, 1, {}};
  bool has_joined_ = false;
  std::shared_ptr<Heartbeats> heartbeats_;

  std::vector<Seen> seen_;
  double since_files_ = 0.0;
  int64_t bytes_moved_ = 0;  // when they were last a sign
  bool may_judge_ = true;
  bool is_stuck_ = false;  // this rank, in a call
  bool is_weak_ = false;   // the suspect waits itself
  int n_verdicts_ = 0;     // in a row
  std::thread thread_;     // last: it begins with everything else there
};

}  // namespace utrain
