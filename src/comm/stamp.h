// What a rank was last seen doing: the words that ranks tell each other by shared memory and
// heartbeat files, and the words that users read.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

namespace utrain {

enum class RunPhase : int64_t { start, load, step, evaluate, save, end };

// Calls in which ranks wait for each other.
enum class CallKind : int64_t {
  none,
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  scalar,
  barrier,
  agree,
  leave,
  finalize,  // MPI itself waits
};

constexpr std::string_view name_of(RunPhase phase) {
  switch (phase) {
    case RunPhase::start: return "start";
    case RunPhase::load: return "load";
    case RunPhase::step: return "step";
    case RunPhase::evaluate: return "evaluate";
    case RunPhase::save: return "save";
    case RunPhase::end: return "end";
  }
  return "?";
}

constexpr std::string_view name_of(CallKind kind) {
  switch (kind) {
    case CallKind::none: return "none";
    case CallKind::all_reduce: return "all-reduce";
    case CallKind::reduce_scatter: return "reduce-scatter";
    case CallKind::all_gather: return "all-gather";
    case CallKind::broadcast: return "broadcast";
    case CallKind::scalar: return "sum of a scalar";
    case CallKind::barrier: return "barrier";
    case CallKind::agree: return "agreement";
    case CallKind::leave:
    case CallKind::finalize: return "end of MPI";
  }
  return "?";
}

struct Stamp {
  RunPhase phase = RunPhase::start;
  int64_t step = 0;    // 0 = before the first
  int64_t number = 0;  // of the newest call, from 1; the same on all ranks for the same call
  CallKind kind = CallKind::none;
  int64_t n_elem = 0;   // 0 = not told
  bool inside = false;  // the call has not returned
};

// Whether a main thread that waits in the call polls meanwhile.
constexpr bool is_polled(const Stamp& s) {
  return s.inside && s.kind != CallKind::finalize;
}

// 4,194,304
inline std::string with_commas(int64_t n) {
  std::string text = std::to_string(n);
  for (int64_t at = std::ssize(text) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text;
}

// "collective 123 (all-reduce of 4,194,304 elements)"
inline std::string call_text(const Stamp& s) {
  std::string text = fmt::format("collective {} ({}", s.number, name_of(s.kind));
  if (s.n_elem > 0)
    text += fmt::format(" of {} element{}", with_commas(s.n_elem), s.n_elem == 1 ? "" : "s");
  return text + ")";
}

// "step 17, in collective 123 (...)"
inline std::string place_text(const Stamp& s) {
  std::string text(name_of(s.phase));
  if (s.step > 0)
    text = s.phase == RunPhase::step ? fmt::format("step {}", s.step)
                                     : fmt::format("{} at step {}", text, s.step);
  if (s.number == 0) return text;
  return fmt::format("{}, {} {}", text, s.inside ? "in" : "after", call_text(s));
}

}  // namespace utrain
