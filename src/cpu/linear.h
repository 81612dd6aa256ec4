// y = x W' + bias + scaling * drop(x) A' B' on the adapter's slice of y
//   Hu et al. 2021, arXiv:2106.09685
//   x, dx [N, in] T   y, dy [N, out] T
//   xa [N, adapters * r] T, adapter i in columns [i r, i r + r)
//   forward: y =, xa =.  backward: dx =, dA +=, dB +=, dW +=, dbias +=; dx, dW, dbias: nothing
//   where empty
//     dxa = scaling * dy B;  dB += scaling * dy' xa;  dA += dxa' drop(x)
//     dx = dy W + mask * (dxa A) / (1 - p);  dW += dy' x;  dbias += column sums of dy
//   Dropout is inverted; each adapter has its own mask, made again in the backward pass. p = 0
//   copies nothing. Products accumulate in T (BLAS).
#pragma once

#include "backend.h"
#include "cpu/column_sums.h"
#include "cpu/dropout.h"
#include "cpu/matmul.h"
#include "cpu/view.h"

namespace utrain::cpu {

// The scratch that holds drop(x), as wide as x.
template <class T>
View<T> dropout_scratch(View<T> x, const LinearContext& context) {
  const View<T> scratch(context.dropped);
  ASSERT(scratch.rows >= x.rows && scratch.cols >= x.cols);
  return scratch.row_range(0, x.rows).columns(0, x.cols);
}

// drop(x) of one adapter: x itself where p = 0.
template <class T>
View<T> dropped(View<T> x, uint32_t site, const LinearContext& context) {
  if (context.dropout.p == 0.0f) return x;
  const View<T> y = dropout_scratch(x, context);
  apply_dropout(y, x, context, site, false);
  return y;
}

template <class T>
void check_linear(View<T> y, View<T> x, View<T> xa, const Linear& linear) {
  const int64_t n_adapters = static_cast<int64_t>(linear.adapters.size());
  ASSERT(y.is(x.rows, linear.W.rows) && x.cols == linear.W.cols);
  ASSERT(n_adapters == 0 || (linear.r > 0 && xa.is(x.rows, n_adapters * linear.r)));
  for (const LoraAdapter& adapter : linear.adapters) {
    ASSERT(adapter.A.rows == linear.r && adapter.A.cols == x.cols && adapter.B.cols == linear.r);
    ASSERT(adapter.row_begin >= 0 && adapter.row_begin + adapter.B.rows <= y.cols);
  }
}

template <class T>
void linear_forward(View<T> y, View<T> xa, View<T> x, const Linear& linear,
                    const LinearContext& context) {
  check_linear(y, x, xa, linear);
  const bool has_bias = !linear.bias.empty();
  if (has_bias) {
    const View<T> bias(linear.bias);
    ASSERT(bias.is(1, y.cols));
    for (int64_t n = 0; n < y.rows; ++n) std::copy_n(bias.data, y.cols, y.row(n));
  }
  matmul_nt<T>(y, x, linear.W, T(1), T(has_bias ? 1 : 0));
  int64_t column = 0;
  for (const LoraAdapter& adapter : linear.adapters) {
    const View<T> xa_i = xa.columns(column, linear.r);
    matmul_nt<T>(xa_i, dropped(x, adapter.site, context), adapter.A);
    matmul_nt<T>(y.columns(adapter.row_begin, adapter.B.rows), xa_i, adapter.B, T(linear.scaling),
                 T(1));
    column += linear.r;
  }
}

template <class T>
void linear_backward(View<T> dx, View<T> dy, View<T> x, View<T> xa, const Linear& linear,
                     const LinearContext& context) {
  check_linear(dy, x, xa, linear);
  ASSERT(dx.empty() || dx.is(x.rows, x.cols));
  if (!dx.empty()) matmul_nn<T>(dx, dy, linear.W);
  if (!linear.dW.empty()) matmul_tn<T>(linear.dW, dy, x, T(1), T(1));
  if (!linear.dbias.empty()) {
    ASSERT(linear.dbias.rows == 1 && linear.dbias.cols == dy.cols);
    add_column_sums<T>(linear.dbias, dy.rows, [&](int64_t n, int64_t k) { return dy.row(n)[k]; });
  }
  const View<T> scratch(context.dxa);
  int64_t column = 0;
  for (const LoraAdapter& adapter : linear.adapters) {
    ASSERT(scratch.rows >= x.rows && scratch.cols >= column + linear.r);
    const View<T> dxa = scratch.row_range(0, x.rows).columns(column, linear.r);
    const View<T> dy_i = dy.columns(adapter.row_begin, adapter.B.rows);
    matmul_nn<T>(dxa, dy_i, adapter.B, T(linear.scaling));
    matmul_tn<T>(adapter.dB, dy_i, xa.columns(column, linear.r), T(linear.scaling), T(1));
    matmul_tn<T>(adapter.dA, dxa, dropped(x, adapter.site, context), T(1), T(1));
    column += linear.r;
    if (dx.empty()) continue;
    if (context.dropout.p == 0.0f) {
      matmul_nn<T>(dx, dxa, adapter.A, T(1), T(1));
      continue;
    }
    // drop(x) is done with: its scratch takes the gradient that goes back through the mask.
    const View<T> back = dropout_scratch(x, context);
    matmul_nn<T>(back, dxa, adapter.A);
    apply_dropout(dx, back, context, adapter.site, true);
  }
}

}  // namespace utrain::cpu
