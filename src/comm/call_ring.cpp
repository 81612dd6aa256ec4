#include "comm/call_ring.h"

#include <chrono>
#include <ctime>

namespace utrain {
namespace {

int64_t now_us() {
  using namespace std::chrono;
  return duration_cast<microseconds>(system_clock::now().time_since_epoch()).count();
}

std::string time_text(int64_t us) {
  const std::time_t seconds = us / 1'000'000;
  std::tm utc = {};
  gmtime_r(&seconds, &utc);
  return fmt::format("{:02}:{:02}:{:02}.{:06}", utc.tm_hour, utc.tm_min, utc.tm_sec,
                     us % 1'000'000);
}

}  // namespace

void CallRing::begin(const Stamp& s) {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  const int64_t n = n_.load(kRelaxed);
  Entry& e = entries_[static_cast<size_t>(n % kStamps)];
  e.begin_us.store(now_us(), kRelaxed);
  e.end_us.store(0, kRelaxed);
  e.phase.store(static_cast<int64_t>(s.phase), kRelaxed);
  e.step.store(s.step, kRelaxed);
  e.number.store(s.number, kRelaxed);
  e.kind.store(static_cast<int64_t>(s.inside ? s.kind : CallKind::none), kRelaxed);
  e.n_elem.store(s.n_elem, kRelaxed);
  n_.store(n + 1, std::memory_order_release);
}

void CallRing::end() {
  const int64_t n = n_.load(std::memory_order_relaxed);
  entries_[static_cast<size_t>((n - 1) % kStamps)].end_us.store(now_us(),
                                                                std::memory_order_relaxed);
}

std::string CallRing::text() const {
  const int64_t n = n_.load(std::memory_order_acquire);
  std::string text;
  for (int64_t i = std::max<int64_t>(0, n - kStamps); i < n; ++i) {
    const Entry& e = entries_[static_cast<size_t>(i % kStamps)];
    Stamp s{static_cast<RunPhase>(e.phase.load()), e.step.load(),   e.number.load(),
            static_cast<CallKind>(e.kind.load()),  e.n_elem.load(), true};
    const bool is_call = s.kind != CallKind::none;
    if (!is_call) s.number = 0;
    text += time_text(e.begin_us.load()) + "  ";
    if (is_call && e.end_us.load() == 0)
      text += fmt::format("{:>12}", "not over");
    else if (is_call)
      text += fmt::format("{:>9} us", e.end_us.load() - e.begin_us.load());
    else
      text += fmt::format("{:12}", "");
    text += "  " + place_text(s) + "\n";
  }
  return text;
}

}  // namespace utrain
