#include "comm/heartbeats.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <map>
#include <optional>

#include "comm/quiet_thread.h"

namespace utrain {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr std::chrono::milliseconds kWritePeriod{1000}, kReadPeriod{250};
constexpr int64_t kMagic = 0x7561727431626565;

// The file, as it is.
struct Beat {
  int64_t check;  // of the other words
  int64_t n_beats, step, number, n_elem, silent_ms, limit_ms;
  int16_t phase, kind, inside, has_left;  // inside: 1 = in a call, 2 = and stuck there

  int64_t sum() const {
    int64_t sum = kMagic;
    for (const int64_t word : {n_beats, step, number, n_elem, silent_ms, limit_ms, int64_t{phase},
                               int64_t{kind}, int64_t{inside}, int64_t{has_left}})
      sum = static_cast<int64_t>(static_cast<uint64_t>(sum) * 31u) ^ word;
    return sum;
  }
};
static_assert(sizeof(Beat) == 64);

std::string path_of(const std::string& run_dir, int rank) {
  return fmt::format("{}/heartbeats/rank-{:05}", run_dir, rank);
}

// Opened anew each time, so that network file systems show it to other nodes.
void write_beat(const std::string& path, const Beat& beat) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (file < 0) return;
  (void)!pwrite(file, &beat, sizeof beat, 0);
  close(file);
}

std::optional<Beat> read_beat(const std::string& path) {
  Beat beat = {};
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return std::nullopt;
  const ssize_t n = pread(file, &beat, sizeof beat, 0);
  close(file);
  if (n != sizeof beat || beat.check != beat.sum()) return std::nullopt;
  return beat;
}

}  // namespace

struct Heartbeats::State {
  std::string run_dir;
  std::shared_ptr<Board> board;
  int own_slot, rank;
  std::vector<int> others;

  std::mutex mutex;
  std::condition_variable changed;
  bool ends = false, has_ended = false, watches = false;
  int64_t n_watches = 0;  // begun or ended: what was read before the newest is not known
  double silent = 0.0;
  bool is_stuck = false;
  struct Known {
    Beat beat;
    Clock::time_point changed;
  };
  std::map<int, Known> known;
  Clock::time_point watched_from, read_last;

  Beat own_beat(double silent_seconds, bool stuck, bool has_left) const {
    const RankSlot& slot = board->slot(own_slot);
    const Stamp s = slot.stamp();
    Beat beat = {};
    beat.n_beats = slot.n_beats;
    beat.silent_ms = static_cast<int64_t>(1e3 * silent_seconds);
    beat.limit_ms = slot.limit_ms;
    beat.number = s.number;
    beat.n_elem = s.n_elem;
    beat.step = s.step;
    beat.phase = static_cast<int16_t>(s.phase);
    beat.kind = static_cast<int16_t>(s.kind);
    beat.inside = !s.inside ? 0 : stuck ? 2 : 1;
    beat.has_left = has_left ? 1 : 0;
    beat.check = beat.sum();
    return beat;
  }
};

Heartbeats::Heartbeats(const std::string& run_dir, std::shared_ptr<Board> board, int own_slot,
                       int rank, std::vector<int> others)
    : state_(std::make_shared<State>()) {
  state_->run_dir = run_dir;
  state_->board = std::move(board);
  state_->own_slot = own_slot;
  state_->rank = rank;
  state_->others = std::move(others);
  write_beat(path_of(run_dir, rank), state_->own_beat(0.0, false, false));
  quiet_thread([state = state_] { run(state); }).detach();
}

Heartbeats::~Heartbeats() {
  std::unique_lock lock(state_->mutex);
  state_->ends = true;
  state_->changed.notify_all();
  state_->changed.wait_for(lock, std::chrono::seconds(1), [&] { return state_->has_ended; });
}

void Heartbeats::set_silent(double seconds, bool is_stuck) {
  const std::lock_guard lock(state_->mutex);
  state_->silent = seconds;
  state_->is_stuck = is_stuck;
}

void Heartbeats::watch(bool on) {
  const std::lock_guard lock(state_->mutex);
  if (on == state_->watches) return;
  state_->watches = on;
  ++state_->n_watches;
  state_->known.clear();
  state_->watched_from = state_->read_last = Clock::now();
  state_->changed.notify_all();
}

std::vector<RankView> Heartbeats::views() const {
  const std::lock_guard lock(state_->mutex);
  const auto now = Clock::now();
  const State& s = *state_;
  std::vector<RankView> views;
  if (!s.watches || Seconds(now - s.watched_from).count() < kStillAfter ||
      Seconds(now - s.read_last).count() > kStillAfter) {
    return views;
  }
  for (const auto& [rank, known] : s.known) {
    const Beat& b = known.beat;
    if (b.has_left != 0) continue;
    const double unchanged = Seconds(now - known.changed).count();
    const bool is_still = unchanged >= kStillAfter;
    const Stamp stamp{static_cast<RunPhase>(b.phase), b.step,   b.number,
                      static_cast<CallKind>(b.kind),  b.n_elem, b.inside != 0};
    views.push_back({rank, stamp, 1e-3 * static_cast<double>(b.limit_ms),
                     1e-3 * static_cast<double>(b.silent_ms) + unchanged, unchanged, is_still,
                     b.inside == 2});
  }
  return views;
}

bool Heartbeats::is_stuck() const {
  const std::lock_guard lock(state_->mutex);
  return state_->watches && Seconds(Clock::now() - state_->read_last).count() > kStillAfter;
}

void Heartbeats::run(std::shared_ptr<State> state) {
  State& s = *state;
  const std::string own_path = path_of(s.run_dir, s.rank);
  Clock::time_point next_write = Clock::now();
  std::unique_lock lock(s.mutex);
  while (!s.ends) {
    const double silent = s.silent;
    const bool watches = s.watches, is_stuck = s.is_stuck;
    const int64_t n_watches = s.n_watches;
    lock.unlock();
    if (Clock::now() >= next_write) {
      next_write = Clock::now() + kWritePeriod;
      write_beat(own_path, s.own_beat(silent, is_stuck, false));
    }
    std::map<int, Beat> beats;
    if (watches) {
      for (const int rank : s.others)
        if (const auto beat = read_beat(path_of(s.run_dir, rank))) beats[rank] = *beat;
    }
    lock.lock();
    if (watches && s.n_watches == n_watches) {
      const auto now = Clock::now();
      s.read_last = now;
      for (const auto& [rank, beat] : beats) {
        const auto found = s.known.find(rank);
        if (found == s.known.end())
          s.known[rank] = {beat, now};
        else if (found->second.beat.n_beats != beat.n_beats)
          found->second = {beat, now};
      }
    }
    const auto next = s.watches ? std::min(next_write, Clock::now() + kReadPeriod) : next_write;
    s.changed.wait_until(lock, next, [&] { return s.ends || s.n_watches != n_watches; });
  }
  lock.unlock();
  write_beat(own_path, s.own_beat(0.0, false, true));
  lock.lock();
  s.has_ended = true;
  s.changed.notify_all();
}

}  // namespace utrain
