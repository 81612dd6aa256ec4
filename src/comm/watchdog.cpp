#include "comm/watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "comm/call_ring.h"
#include "comm/heartbeats.h"
#include "comm/last_words.h"
#include "comm/quiet_thread.h"
#include "comm/verdict.h"
#include "core/error.h"
#include "core/process.h"

namespace utrain {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr std::chrono::milliseconds kPeriod{50};
// A longer time between two looks is one in which this process stood still.
constexpr double kLongestPeriod = 1.0;  // s
// s more for last words where there are other nodes, with and without files
constexpr double kOtherNodes = 0.5, kUnknownNodes = 1.5;
constexpr int64_t kBytesOfASign = 1 << 20;
constexpr int kVerdicts = 10;               // in a row
constexpr double kSilentMoment = 0.5;       // s
constexpr double kAfterTheFirst = 0.75;     // s until others end who had not to say it
constexpr double kLookAtOthersAhead = 5.0;  // s before the limit

double to_seconds(int64_t ms) {
  return 1e-3 * static_cast<double>(ms);
}

}  // namespace

// What the main thread hands over to the watcher, and what threads that are left behind use.
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
  explicit Watcher(std::shared_ptr<State> state)
      : state_(std::move(state)), thread_(quiet_thread([this] { run(); })) {}
  ~Watcher() {
    {
      const std::lock_guard lock(state_->mutex);
      state_->ends = true;
      state_->changed.notify_all();
    }
    thread_.join();
  }

 private:
  // What was last seen of a slot, and for how long it has been the same.
  struct Seen {
    int64_t n_signs = -1, n_beats = -1, n_polls = -1;
    double silent = 0.0, still = 0.0, unpolled = 0.0;
  };

  void run() {
    Clock::time_point last = Clock::now();
    std::unique_lock lock(state_->mutex);
    while (!state_->changed.wait_for(lock, kPeriod, [&] { return state_->ends; })) {
      const auto now = Clock::now();
      const double elapsed = std::chrono::duration<double>(now - last).count();
      last = now;
      if (board_ != state_->board) {
        board_ = state_->board;
        seen_.assign(static_cast<size_t>(board_->size()), {});
      }
      place_ = state_->place;
      has_joined_ = state_->has_joined;
      heartbeats_ = state_->heartbeats;
      lock.unlock();
      look(std::min(elapsed, kLongestPeriod));
      lock.lock();
    }
  }

  void look(double elapsed) {
    board_->slot(place_.local_rank).n_beats.fetch_add(1, kRelaxed);
    if (board_->giver_up().load() != 0) give_up("");
    look_at_files(elapsed);
    look_at_save(elapsed);
    std::vector<RankView> views = node_views(elapsed);
    if (heartbeats_) add_other_nodes(views);
    const std::optional<Verdict> verdict = may_judge_ ? judge(views) : std::nullopt;
    n_verdicts_ = verdict ? n_verdicts_ + 1 : 0;
    // Not a moment's mixture of two stamps; and who has waited long, and now need not, must be given
    // the time to wake up on a busy machine.
    if (n_verdicts_ < kVerdicts) return;
    int64_t nobody = 0;
    const bool is_first = board_->giver_up().compare_exchange_strong(nobody, 1 + place_.local_rank);
    const RankView& suspect = views[verdict->suspect];
    is_weak_ = suspect.waits() && !suspect.is_still;
    give_up(is_first ? text_of(*verdict, views) : "");
  }

  // Outside of steps whatever is read and written shows progress by itself.
  void look_at_files(double elapsed) {
    RankSlot& own = board_->slot(place_.local_rank);
    since_files_ += elapsed;
    if (since_files_ < kSilentMoment) return;
    since_files_ = 0.0;
    const int64_t bytes = bytes_moved();
    if (bytes - bytes_moved_ < kBytesOfASign) return;
    bytes_moved_ = bytes;
    if (own.stamp().phase != RunPhase::step) own.n_signs.fetch_add(1, kRelaxed);
  }

  void look_at_save(double elapsed) {
    const std::optional<SaveWatch::View> save = state_->saves.look(elapsed);
    if (!save) return;
    RankSlot& own = board_->slot(place_.local_rank);
    // Whoever waits for it is judged by it.
    if (own.stamp().phase == RunPhase::save) own.n_signs.fetch_add(1, kRelaxed);
    if (!save->hangs()) return;
    int64_t nobody = 0;
    const bool is_first = board_->giver_up().compare_exchange_strong(nobody, 1 + place_.local_rank);
    std::string text;
    if (is_first) {
      const std::lock_guard lock(state_->mutex);
      text = save_hang_text(*save, place_.rank, own_place(), state_->crash_dir);
    }
    give_up(text);
  }

  // The lock is held.
  std::string own_place() const {
    const auto rank = static_cast<size_t>(place_.rank);
    return rank < state_->places.size() ? state_->places[rank] : state_->who;
  }

  std::vector<RankView> node_views(double elapsed) {
    std::vector<RankView> views;
    const int64_t own_limit = board_->slot(place_.local_rank).limit_ms.load(kRelaxed);
    may_judge_ = true;
    for (int i = 0; i < board_->size(); ++i) {
      const RankSlot& slot = board_->slot(i);
      const int64_t state = slot.state.load();
      if (state == RankSlot::has_left) continue;
      Seen& seen = seen_[static_cast<size_t>(i)];
      const auto age = [&](int64_t& last, int64_t now, double& seconds) {
        seconds = last == now ? seconds + elapsed : 0.0;
        last = now;
      };
      age(seen.n_signs, slot.n_signs.load(kRelaxed), seen.silent);
      age(seen.n_beats, slot.n_beats.load(kRelaxed), seen.still);
      age(seen.n_polls, slot.n_polls.load(kRelaxed), seen.unpolled);
      const double limit =
          to_seconds(state == RankSlot::here ? slot.limit_ms.load(kRelaxed) : own_limit);
      const double too_long = std::clamp(limit / 2.0, 0.5, 5.0);
      const bool is_still = seen.still > too_long;
      const Stamp stamp = slot.stamp();
      const bool is_stuck = is_polled(stamp) && std::min(seen.unpolled, seen.silent) > too_long;
      if (i == place_.local_rank) is_stuck_ = is_stuck;
      // On several nodes the first rank that moves judges for its node.
      if (heartbeats_ && i < place_.local_rank && !is_still) may_judge_ = false;
      views.push_back({static_cast<int>(slot.rank.load()), stamp, limit, seen.silent, seen.still,
                       is_still, is_stuck});
    }
    return views;
  }

  // Other nodes are looked at when this one alone would soon be given up.
  void add_other_nodes(std::vector<RankView>& views) {
    const double own = seen_[static_cast<size_t>(place_.local_rank)].silent;
    heartbeats_->set_silent(own, is_stuck_);
    if (!may_judge_) return;
    double silent = 1e9, limit = 0.0;
    for (const RankView& v : views) {
      silent = std::min(silent, v.silent);
      limit = std::max(limit, v.limit);
    }
    heartbeats_->watch(silent > std::max(limit / 4.0, limit - kLookAtOthersAhead));
    const std::vector<RankView> others = heartbeats_->views();
    views.insert(views.end(), others.begin(), others.end());
    may_judge_ = !others.empty() || heartbeats_->is_stuck();
  }

  std::string text_of(const Verdict& verdict, const std::vector<RankView>& views) {
    const std::lock_guard lock(state_->mutex);
    if (has_joined_) return verdict_text(verdict, views, state_->places, state_->crash_dir);
    return fmt::format(
        "{}: no progress for {:.0f} s: MPI has not brought the ranks together; look for a rank "
        "that is stopped, or a node that is lost or cannot be reached",
        state_->who, views[verdict.suspect].silent);
  }

  // text: what to say; "" = another rank says it. Does not return.
  [[noreturn]] void give_up(std::string text) {
    std::string crash_dir, who;
    std::vector<std::function<void()>> tasks;
    // Processes that do not know each other yet: the first of a node says it for all.
    const Claim claim = has_joined_ || text.empty() ? Claim::mine : claim_on_node("hang");
    if (claim == Claim::taken) text.clear();
    if (claim == Claim::unknown)
      std::this_thread::sleep_for(std::chrono::milliseconds(800) * std::min(place_.rank, 2));
    {
      const std::lock_guard lock(state_->mutex);
      crash_dir = state_->crash_dir;
      who = own_place();
      for (const auto& [key, work] : state_->at_hang) tasks.push_back(work);
    }
    if (!text.empty()) {
      const int node = place_.n_nodes > 1 ? place_.node : -1;
      tasks.push_back([=, weak = is_weak_] { say_once(text, crash_dir, node, weak); });
    }
    if (!crash_dir.empty()) {
      tasks.push_back([state = state_, crash_dir, who, rank = place_.rank] {
        write_crash_file(fmt::format("{}/rank-{:05}.txt", crash_dir, rank),
                         fmt::format("# rank {} on {}, process {}: what it did last (UTC)\n{}",
                                     rank, who, getpid(), state->ring.text()));
      });
    }
    const double bound = kLastWords + (place_.n_nodes == 1 ? 0.0
                                       : crash_dir.empty() ? kUnknownNodes
                                                           : kOtherNodes);
    const auto end = Clock::now() + std::chrono::duration<double>(bound);
    run_bounded(tasks, bound);
    board_->slot(place_.local_rank).has_spoken = 1;
    // A launcher ends all ranks when the first one has gone.
    while (Clock::now() < end && !all_have_spoken(!crash_dir.empty()))
      std::this_thread::sleep_for(kPeriod / 10);
    // Held until all others have asked as well.
    if (!has_joined_) std::this_thread::sleep_for(std::chrono::duration<double>(kAfterTheFirst));
    // One goes, and the launcher ends the others: mpirun 4.1 does not always survive that all go at
    // once. They go by themselves where it does not.
    if (text.empty()) {
      std::this_thread::sleep_for(std::chrono::duration<double>(kAfterTheFirst) +
                                  kPeriod * std::min(place_.local_rank, 10));
    }
    _exit(static_cast<int>(ExitCode::internal));
  }

  // Of other nodes nothing is known: their files get all the time.
  bool all_have_spoken(bool with_files) const {
    for (int i = 0; i < board_->size(); ++i) {
      const RankSlot& slot = board_->slot(i);
      const bool moves = seen_[static_cast<size_t>(i)].still < 0.5;
      if (slot.state == RankSlot::here && moves && slot.has_spoken == 0) return false;
    }
    return place_.n_nodes == 1 || !with_files;
  }

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

Watchdog::Watchdog(int64_t timeout, int rank, const std::string& who)
    : state_(std::make_shared<State>()), slot_(&state_->board->slot(0)), timeout_(timeout) {
  state_->who = who;
  state_->place.rank = rank;
  slot_->rank = rank;
  set_timeout(timeout);
  slot_->state = RankSlot::here;
  watcher_ = std::make_unique<Watcher>(state_);
}

Watchdog::~Watchdog() {
  watcher_.reset();
  slot_->state = RankSlot::has_left;
  state_->heartbeats.reset();
}

void Watchdog::set_timeout(int64_t timeout) {
  timeout_ = timeout;
  state_->saves.set_limit(to_seconds(limit_ms(RunPhase::save)));
  show(now_);
}

void Watchdog::join(std::shared_ptr<Board> board, const Place& place) {
  const std::lock_guard lock(state_->mutex);
  slot_ = &board->slot(place.local_rank);
  show(now_);
  slot_->state = RankSlot::here;
  state_->board = std::move(board);
  state_->place = place;
  state_->has_joined = true;
}

void Watchdog::set_places(std::vector<std::string> places) {
  const std::lock_guard lock(state_->mutex);
  state_->places = std::move(places);
}

void Watchdog::set_directory(const std::string& run_dir) {
  const Place& place = state_->place;
  std::unique_lock lock(state_->mutex);
  state_->crash_dir = run_dir + "/crash";
  if (place.n_nodes == 1) return;
  lock.unlock();  // a file is written: a disk that stands still must not hold up the watcher
  auto heartbeats = std::make_shared<Heartbeats>(run_dir, state_->board, place.local_rank,
                                                 place.rank, place.others);
  lock.lock();
  state_->heartbeats = std::move(heartbeats);
}

void Watchdog::enter(RunPhase phase, int64_t step) {
  now_.phase = phase;
  now_.step = step;
  show(now_);
  state_->ring.begin(now_);
}

void Watchdog::progress() {
  slot_->n_signs.fetch_add(1, kRelaxed);
}

void Watchdog::waits() {
  slot_->n_polls.fetch_add(1, kRelaxed);
}

void Watchdog::step_took(double seconds) {
  slowest_step_ = std::max(slowest_step_, seconds);
}

SaveWatch& Watchdog::saves() {
  return state_->saves;
}

void Watchdog::begin_call(CallKind kind, int64_t n_elem) {
  ++now_.number;
  now_.kind = kind;
  now_.n_elem = n_elem;
  now_.inside = true;
  show(now_);
  state_->ring.begin(now_);
}

void Watchdog::end_call() {
  now_.inside = false;
  slot_->inside.store(0, kRelaxed);
  slot_->n_signs.fetch_add(1, kRelaxed);
  state_->ring.end();
}

void Watchdog::show(const Stamp& s) {
  slot_->limit_ms.store(limit_ms(s.phase), kRelaxed);
  slot_->phase.store(static_cast<int64_t>(s.phase), kRelaxed);
  slot_->step.store(s.step, kRelaxed);
  slot_->kind.store(static_cast<int64_t>(s.kind), kRelaxed);
  slot_->n_elem.store(s.n_elem, kRelaxed);
  slot_->inside.store(s.inside ? 1 : 0, kRelaxed);
  slot_->number.store(s.number, kRelaxed);
  slot_->n_signs.fetch_add(1, kRelaxed);
}

int64_t Watchdog::limit_ms(RunPhase phase) const {
  if (timeout_ > 0) return 1000 * timeout_;
  if (phase != RunPhase::step || slowest_step_ == 0.0) return 1000 * kTimeout;
  return static_cast<int64_t>(
      1e3 * std::clamp(10.0 * slowest_step_, double{kLeastOfStep}, double{kTimeout}));
}

void Watchdog::at_hang(const void* key, std::function<void()> work) {
  const std::lock_guard lock(state_->mutex);
  state_->at_hang[key] = std::move(work);
}

void Watchdog::forget(const void* key) {
  const std::lock_guard lock(state_->mutex);
  state_->at_hang.erase(key);
}

}  // namespace utrain
