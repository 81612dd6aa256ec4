// (query, key) pairs that causal attention meets in one document: query i sees the keys j <= i with
// i - j < window.
#pragma once

#include <cstdint>

namespace utrain {

// length: tokens of the document; window 0 = all.
constexpr int64_t causal_pairs(int64_t length, int64_t window) {
  const int64_t w = window > 0 && window < length ? window : length;
  return w * (w + 1) / 2 + (length - w) * w;
}

}  // namespace utrain
