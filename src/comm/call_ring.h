// The newest stamps of this rank, for a file after a hang. One thread writes; another may read
// while it does, and then finds at worst one line mixed.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "comm/stamp.h"

namespace utrain {

class CallRing {
 public:
  static constexpr int64_t kStamps = 256;

  void begin(const Stamp& stamp);  // a call, or a phase
  void end();                      // of the newest call
  // A line for each: time (UTC), duration of the call, where.
  std::string text() const;

 private:
  using Word = std::atomic<int64_t>;
  struct Entry {
    Word begin_us, end_us;  // since 1970; 0 = not yet
    Word phase, step, number, kind, n_elem;
  };
  std::array<Entry, kStamps> entries_ = {};
  Word n_{0};
};

}  // namespace utrain
