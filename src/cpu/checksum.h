// sum = (sum + sum over i of (2 i + 1) w_i) mod 2^48
//   x contiguous, its bytes as 32-bit words w_i   sum [1, 1] double, an integer, updated in place
//   A bit b < 32 of w_i counts (2 i + 1) 2^b, which is no multiple of 2^48: flipped, it changes the
//   sum for certain. Integers: no order of adding shows.
#pragma once

#include <cstring>

#include "core/tensor.h"

namespace utrain::cpu {

inline void checksum(const Tensor& sum, const Tensor& x) {
  constexpr uint64_t kMask = (uint64_t{1} << 48) - 1;
  const int64_t n = x.n_elem() * size_of(x.dtype) / 4;
  ASSERT(sum.n_elem() == 1 && x.contiguous() && x.n_elem() * size_of(x.dtype) % 4 == 0);
  const auto* bytes = static_cast<const unsigned char*>(x.data);
  uint64_t added = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : added)
  for (int64_t i = 0; i < n; ++i) {
    uint32_t word;
    std::memcpy(&word, bytes + 4 * i, 4);
    added += (2 * static_cast<uint64_t>(i) + 1) * word;
  }
  double& total = *sum.as<double>();
  ASSERT(total >= 0.0 && total <= static_cast<double>(kMask));
  total = static_cast<double>((static_cast<uint64_t>(total) + added) & kMask);
}

}  // namespace utrain::cpu
