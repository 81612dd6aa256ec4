#include "comm/watchdog.h"

#include <algorithm>

#include "comm/watcher.h"

namespace utrain {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

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

double Watchdog::limit() const {
  return to_seconds(limit_ms(now_.phase));
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
