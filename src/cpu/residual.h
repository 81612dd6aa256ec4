// h = x + branch
//   h, x, branch [N, C] T
//   forward: h =; h may be x. The backward pass is the identity, which rmsnorm_backward's beta = 1
//   adds.
#pragma once

#include "cpu/view.h"

namespace utrain::cpu {

template <class T>
void residual_forward(View<T> h, View<T> x, View<T> branch) {
  ASSERT(x.is(h.rows, h.cols) && branch.is(h.rows, h.cols));
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < h.rows; ++n) {
    T* h_n = h.row(n);
    const T *x_n = x.row(n), *branch_n = branch.row(n);
#pragma omp simd
    for (int64_t c = 0; c < h.cols; ++c) h_n[c] = x_n[c] + branch_n[c];
  }
}

}  // namespace utrain::cpu
