// block_sums[b] = sum of x^2 over elements [1024 b, 1024 b + 1024)
//   x [1, n] T, n % 1024 == 0   block_sums [1, n / 1024] or [n / 1024, 1] double (T where wider)
//   forward: block_sums =. The caller adds the blocks in order, so the norm does not depend on how
//   they were dealt out. Accumulates in double.
#pragma once

#include "cpu/view.h"

namespace utrain::cpu {

inline constexpr int64_t kSumBlock = 1024;

template <class T>
void sum_of_squares(View<Wide<T>> block_sums, View<T> x) {
  const int64_t n_blocks = x.cols / kSumBlock;
  ASSERT(x.rows == 1 && x.cols % kSumBlock == 0);
  ASSERT(block_sums.is(1, n_blocks) || (block_sums.is(n_blocks, 1) && block_sums.ld == 1));
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < n_blocks; ++b) {
    const T* x_b = x.data + b * kSumBlock;
    Wide<T> sum = 0;
    if constexpr (is_real<T>) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < kSumBlock; ++i) sum += static_cast<double>(x_b[i]) * x_b[i];
    } else {
      for (int64_t i = 0; i < kSumBlock; ++i) sum += x_b[i] * x_b[i];
    }
    block_sums.data[b] = sum;
  }
}

}  // namespace utrain::cpu
