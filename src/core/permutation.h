// A permutation as a function of its key alone: Fisher-Yates from the end, where element i changes
// places with element j drawn without bias from [0, i]. Draw: the high word of (i + 1) * w, w = 64
// bits of philox(key, i, attempt), where attempts with a low word below 2^64 mod (i + 1) are
// rejected.            Lemire 2019, doi:10.1145/3230636
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/random.h"

namespace utrain {

// Philox counters of permutations end in this word, which no dropout site reaches.
constexpr uint32_t kPermutationStream = 0xFFFFFFFFu;

// Uniform in [0, bound), bound >= 1; one number for each (key, index).
inline uint64_t bounded(uint64_t key, uint64_t index, uint64_t bound) {
  for (uint32_t attempt = 0;; ++attempt) {
    const Philox word = philox(key, static_cast<uint32_t>(index),
                               static_cast<uint32_t>(index >> 32), attempt, kPermutationStream);
    const uint64_t w = word.x[0] | static_cast<uint64_t>(word.x[1]) << 32;
    __extension__ using uint128_t = unsigned __int128;
    const uint128_t product = static_cast<uint128_t>(w) * bound;
    if (static_cast<uint64_t>(product) >= (0 - bound) % bound)
      return static_cast<uint64_t>(product >> 64);
  }
}

inline std::vector<int64_t> file_order(int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  return order;
}

// Element i of the result is which of [0, n) stands at place i.
inline std::vector<int64_t> permutation(int64_t n, uint64_t key) {
  std::vector<int64_t> order = file_order(n);
  for (int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[bounded(key, i, i + 1)]);
  return order;
}

// Keys: what is permuted in an epoch (from 0), or once for the whole run.
inline uint64_t permutation_key(uint64_t seed, int64_t epoch) {
  return mix(seed ^ mix(static_cast<uint64_t>(epoch) + 1));
}
inline uint64_t permutation_key(uint64_t seed) {
  return permutation_key(seed, -1);
}

}  // namespace utrain
