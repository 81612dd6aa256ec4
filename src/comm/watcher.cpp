#include "comm/watcher.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "comm/last_words.h"
#include "comm/quiet_thread.h"
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
constexpr int kVerdicts = 10;               // in a row
constexpr double kSilentMoment = 0.5;       // s
constexpr double kAfterTheFirst = 0.75;     // s until others end who had not to say it
constexpr double kLookAtOthersAhead = 5.0;  // s before the limit

}  // namespace

Watchdog::Watcher::Watcher(std::shared_ptr<State> state)
    : state_(std::move(state)), thread_(quiet_thread([this] { run(); })) {}

Watchdog::Watcher::~Watcher() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->ends = true;
    state_->changed.notify_all();
  }
  thread_.join();
}

void Watchdog::Watcher::run() {
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

void Watchdog::Watcher::look(double elapsed) {
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

void Watchdog::Watcher::look_at_files(double elapsed) {
  RankSlot& own = board_->slot(place_.local_rank);
  since_files_ += elapsed;
  if (since_files_ < kSilentMoment) return;
  since_files_ = 0.0;
  const int64_t bytes = bytes_moved();
  if (bytes - bytes_moved_ < kBytesOfASign) return;
  bytes_moved_ = bytes;
  if (own.stamp().phase != RunPhase::step) own.n_signs.fetch_add(1, kRelaxed);
}

void Watchdog::Watcher::look_at_save(double elapsed) {
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

std::string Watchdog::Watcher::own_place() const {
  const auto rank = static_cast<size_t>(place_.rank);
  return rank < state_->places.size() ? state_->places[rank] : state_->who;
}

std::vector<RankView> Watchdog::Watcher::node_views(double elapsed) {
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

void Watchdog::Watcher::add_other_nodes(std::vector<RankView>& views) {
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

std::string Watchdog::Watcher::text_of(const Verdict& verdict, const std::vector<RankView>& views) {
  const std::lock_guard lock(state_->mutex);
  if (has_joined_) return verdict_text(verdict, views, state_->places, state_->crash_dir);
  return fmt::format(
      "{}: no progress for {:.0f} s in {}: MPI has not brought the ranks together; look for a "
      "rank that is stopped, or a node that is lost or cannot be reached",
      state_->who, views[verdict.suspect].silent, place_text(views[verdict.suspect].stamp));
}

void Watchdog::Watcher::give_up(std::string text) {
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
                       fmt::format("# rank {} on {}, process {}: what it did last (UTC)\n{}", rank,
                                   who, getpid(), state->ring.text()));
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

bool Watchdog::Watcher::all_have_spoken(bool with_files) const {
  for (int i = 0; i < board_->size(); ++i) {
    const RankSlot& slot = board_->slot(i);
    const bool moves = seen_[static_cast<size_t>(i)].still < 0.5;
    if (slot.state == RankSlot::here && moves && slot.has_spoken == 0) return false;
  }
  return place_.n_nodes == 1 || !with_files;
}

}  // namespace utrain
