// sums[k] += sum over rows of term(row, k): gradients of biases and of norms
//   sums [1, K] T. A column is added in row order, in double (T where wider), whatever the number
//   of threads.
#pragma once

#include <array>

#include "cpu/view.h"

namespace utrain::cpu {

// term(n, k): T, for rows 0 <= n < N and columns 0 <= k < K.
template <class T, class Term>
void add_column_sums(View<T> sums, int64_t N, Term term) {
  constexpr int64_t block = 64;
  const int64_t K = sums.cols;
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < K; begin += block) {
    const int64_t n_columns = std::min(block, K - begin);
    std::array<Wide<T>, block> sum{};
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t i = 0; i < n_columns; ++i) sum[i] += term(n, begin + i);
    }
    for (int64_t i = 0; i < n_columns; ++i) sums.data[begin + i] += static_cast<T>(sum[i]);
  }
}

}  // namespace utrain::cpu
