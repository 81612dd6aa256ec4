// x = table[tokens]
//   x, dx [N, C] T   table, dtable [V, C] T   tokens [N] int32
//   forward: x =.  backward: dtable[tokens] += dx, in row order, whatever the number of threads.
//   Requires 0 <= token < V.
#pragma once

#include "backend.h"
#include "cpu/view.h"

namespace utrain::cpu {

template <class T>
void embedding_forward(View<T> x, View<T> table, const TokenBatch& batch) {
  ASSERT(x.is(batch.n_rows, table.cols));
  ASSERT(all_below(batch.tokens, batch.n_rows, table.rows));
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < batch.n_rows; ++n) {
    std::copy_n(table.row(batch.tokens[n]), table.cols, x.row(n));
  }
}

template <class T>
void embedding_backward(View<T> dtable, View<T> dx, const TokenBatch& batch) {
  constexpr int64_t block = 64;
  const int64_t C = dtable.cols;
  ASSERT(dx.is(batch.n_rows, C));
  ASSERT(all_below(batch.tokens, batch.n_rows, dtable.rows));
  // A thread adds its columns of every row, so that no two threads meet in a row of the table.
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < C; begin += block) {
    const int64_t n_columns = std::min(block, C - begin);
    for (int64_t n = 0; n < batch.n_rows; ++n) {
      add_scaled(dtable.row(batch.tokens[n]) + begin, T(1), dx.row(n) + begin, n_columns);
    }
  }
}

}  // namespace utrain::cpu
