// What of memory a rank may plan for, and what a refusal says where it is too little.
#pragma once

#include <fmt/core.h>

#include <algorithm>
#include <string>

#include "core/arena.h"

namespace utrain {

struct MemoryBudget {
  int64_t bytes = 0;
  bool is_of_host = false;  // as on the CPU: the arena's host memory is of the same bytes

  int64_t needed(const Arena& arena) const {
    return arena.bytes() + (is_of_host ? arena.host_bytes() : 0);
  }
  bool holds(const Arena& arena) const { return needed(arena) <= bytes; }
};

// "1.23 GB needed on each rank WHAT_FOR, 1.21 GB free for it", with the digits that tell them apart.
inline std::string text_of_shortage(int64_t needed, int64_t free,
                                    const std::string& what_for = "") {
  const bool large = std::max(needed, free) >= 1'000'000'000;
  const auto text = [&](int64_t bytes, int digits) {
    return fmt::format("{:.{}f} {}", static_cast<double>(bytes) * (large ? 1e-9 : 1e-6), digits,
                       large ? "GB" : "MB");
  };
  int digits = 2;
  while (digits < 9 && text(needed, digits) == text(free, digits)) ++digits;
  return fmt::format("{} needed on each rank{}{}, {} free for it", text(needed, digits),
                     what_for.empty() ? "" : " ", what_for, text(free, digits));
}

}  // namespace utrain
