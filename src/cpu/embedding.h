// x = table[tokens]
//   x [N, C] T   table [V, C] T   tokens [N] int32
//   forward: x =. The table is frozen, so there is no backward.
//   Requires 0 <= token < V. Moves values, computes nothing.
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

}  // namespace utrain::cpu
