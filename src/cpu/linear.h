// y = x W' + bias + scaling * drop(x) A' B' on the adapter's slice of y              Hu et al.
// 2021, arXiv:2106.09685
//   x, dx [N, in] T   y, dy [N, out] T   xa [N, adapters * r] T, adapter i in columns [i r, i r +
//   r) forward: y =, xa =.  backward: dx = (nothing where empty), dA +=, dB +=; W and bias are
//   frozen. dxa = scaling * dy B;  dB += scaling * dy' xa;  dA += dxa' drop(x);  dx = dy W + mask *
//   (dxa A) / (1 - p) Dropout is inverted; each adapter has its own mask, made again in the
//   backward pass. p = 0 copies nothing. Products accumulate in T (BLAS).
#pragma once

#include <vector>

#include "backend.h"
#include "core/random.h"
#include "cpu/matmul.h"
#include "cpu/view.h"

namespace utrain::cpu {

// The mask of one adapter; core/random.h says which word decides an element.
struct DropoutMask {
  uint64_t key = 0;
  uint32_t threshold = 0, site = 0;
  float scale = 1.0f;  // 1 / (1 - p)

  DropoutMask(const Dropout& dropout, uint32_t site)
      : key(dropout_key(dropout.seed, dropout.epoch)),
        threshold(dropout_threshold(dropout.p)),
        site(site),
        scale(1.0f / (1.0f - dropout.p)) {
    ASSERT(dropout.p >= 0.0f && dropout.p < 1.0f);
  }

  // factors[c] = scale where column c of this row is kept, else 0; [columns rounded up to 4].
  template <class R>
  void row(R* factors, int64_t n_columns, int32_t position, int32_t document) const {
    const uint32_t n_words = static_cast<uint32_t>((n_columns + 3) / 4);
#pragma omp simd
    for (uint32_t w = 0; w < n_words; ++w) {
      const Philox words =
          philox(key, w, static_cast<uint32_t>(position), static_cast<uint32_t>(document), site);
      for (int i = 0; i < 4; ++i) {
        factors[4 * w + i] = words.x[i] >= threshold ? static_cast<R>(scale) : R(0);
      }
    }
  }
};

// function(n, factors) on every row of a pass.
template <class T, class Function>
void for_each_mask_row(const LinearContext& context, uint32_t site, int64_t n_columns,
                       const Function& function) {
  const DropoutMask mask(context.dropout, site);
  const TokenBatch& batch = context.batch;
#pragma omp parallel
  {
    std::vector<Real<T>> factors((n_columns + 3) / 4 * 4);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < batch.n_rows; ++n) {
      mask.row(factors.data(), n_columns, batch.positions[n], batch.documents[n]);
      function(n, factors.data());
    }
  }
}

// drop(x) of one adapter: x itself where p = 0, else written to the scratch.
template <class T>
View<T> dropped(View<T> x, uint32_t site, const LinearContext& context) {
  if (context.dropout.p == 0.0f) return x;
  const View<T> scratch(context.dropped);
  ASSERT(scratch.rows >= x.rows && scratch.cols >= x.cols);
  const View<T> y{scratch.data, x.rows, x.cols, scratch.ld};
  for_each_mask_row<T>(context, site, x.cols, [&](int64_t n, const Real<T>* factors) {
    const T* x_n = x.row(n);
    T* y_n = y.row(n);
#pragma omp simd
    for (int64_t c = 0; c < x.cols; ++c) y_n[c] = x_n[c] * factors[c];
  });
  return y;
}

template <class T>
void check_linear(View<T> y, View<T> x, View<T> xa, const Linear& linear,
                  const LinearContext& context) {
  const int64_t n_adapters = static_cast<int64_t>(linear.adapters.size());
  ASSERT(y.is(x.rows, linear.W.rows) && x.cols == linear.W.cols);
  ASSERT(n_adapters == 0 || (linear.r > 0 && xa.is(x.rows, n_adapters * linear.r)));
  ASSERT(n_adapters == 0 || context.dropout.p == 0.0f || context.batch.n_rows == x.rows);
  for (const LoraAdapter& adapter : linear.adapters) {
    ASSERT(adapter.A.rows == linear.r && adapter.A.cols == x.cols && adapter.B.cols == linear.r);
    ASSERT(adapter.row_begin >= 0 && adapter.row_begin + adapter.B.rows <= y.cols);
  }
}

template <class T>
void linear_forward(View<T> y, View<T> xa, View<T> x, const Linear& linear,
                    const LinearContext& context) {
  check_linear(y, x, xa, linear, context);
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
  check_linear(dy, x, xa, linear, context);
  ASSERT(dx.empty() || dx.is(x.rows, x.cols));
  if (!dx.empty()) matmul_nn<T>(dx, dy, linear.W);
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
    const View<T> all(context.dropped), back{all.data, x.rows, x.cols, all.ld};
    matmul_nn<T>(back, dxa, adapter.A);
    for_each_mask_row<T>(context, adapter.site, x.cols, [&](int64_t n, const Real<T>* factors) {
      const T* back_n = back.row(n);
      T* dx_n = dx.row(n);
#pragma omp simd
      for (int64_t c = 0; c < x.cols; ++c) dx_n[c] += back_n[c] * factors[c];
    });
  }
}

}  // namespace utrain::cpu
