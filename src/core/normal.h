// Normal random numbers that are a function of (key, element) alone: any range of a tensor can be
// made by anybody, in any order.
//   A block of 1,024 elements takes the 256 Philox counters 256 * block + lane: words 0 and 1 of a
//   counter are a pair of Box and Muller 1958, so are words 2 and 3; the cosines and sines of the
//   two pairs are elements 0, 256, 512 and 768 + lane of the block.
//   u = (word / 2 + 1/2) / 2^31 in (0, 1], so no number is larger than 6.7; angle = 2 pi word /
//   2^32.
#pragma once

#include <cstdint>

namespace utrain {

// out[0, n) = stddev * N(0, 1), elements [first, first + n), first >= 0. Errors, at stddev 1: 1e-6,
// and what rounding u to float does to a radius next to 0.
void fill_normal(uint64_t key, float stddev, int64_t first, int64_t n, float* out);

}  // namespace utrain
