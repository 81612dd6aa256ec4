// y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps) over groups of K columns
//   Zhang & Sennrich 2019, arXiv:1910.07467
//   x, y, dx, dy [N, G*K] T   rstd [N, G] T   weight, dweight [1, K] T, shared by the groups
//   forward: y =, rstd =; y may be x. With a residual: h = x + branch, y = rmsnorm(h); h may be x.
//   backward, xhat = x * rstd:
//     dx = beta * dx + rstd * (dy * weight - xhat * mean(dy * weight * xhat))
//     dweight += sum over rows and groups of dy * xhat, nothing where empty
//   beta = 0 does not read dx, and dx may then be dy. Means accumulate in T over fixed lanes.
#pragma once

#include <cmath>

#include "cpu/column_sums.h"
#include "cpu/residual.h"
#include "cpu/view.h"

namespace utrain::cpu {

template <class T>
void rmsnorm_forward(View<T> y, View<T> rstd, View<T> x, View<T> weight, double eps) {
  const int64_t K = weight.cols, G = rstd.cols;
  ASSERT(weight.rows == 1 && K > 0 && y.is(x.rows, G * K) && x.cols == G * K);
  ASSERT(rstd.rows == x.rows);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t g = 0; g < G; ++g) {
      const T* x_g = x.row(n) + g * K;
      T* y_g = y.row(n) + g * K;
      const T mean = dot(x_g, x_g, K) / static_cast<T>(K);
      const T r = static_cast<T>(1) / std::sqrt(mean + static_cast<T>(eps));
      rstd.row(n)[g] = r;
#pragma omp simd
      for (int64_t k = 0; k < K; ++k) y_g[k] = x_g[k] * r * weight.data[k];
    }
  }
}

template <class T>
void residual_rmsnorm_forward(View<T> h, View<T> y, View<T> rstd, View<T> x, View<T> branch,
                              View<T> weight, double eps) {
  residual_forward(h, x, branch);
  rmsnorm_forward(y, rstd, h, weight, eps);
}

template <class T>
void rmsnorm_backward(View<T> dx, View<T> dweight, View<T> dy, View<T> x, View<T> rstd,
                      View<T> weight, float beta) {
  const int64_t K = weight.cols, G = rstd.cols;
  ASSERT(weight.rows == 1 && K > 0 && dx.is(x.rows, G * K) && dy.is(x.rows, G * K));
  ASSERT(x.cols == G * K && rstd.rows == x.rows);
  ASSERT(beta == 0.0f || dx.data != dy.data);
  ASSERT(dweight.empty() || dweight.is(1, K));
  if (!dweight.empty()) {  // first, because dx may be dy
    add_column_sums(dweight, x.rows * G, [&](int64_t i, int64_t k) {
      const int64_t n = i / G, column = i % G * K + k;
      return dy.row(n)[column] * x.row(n)[column] * rstd.row(n)[i % G];
    });
  }
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t g = 0; g < G; ++g) {
      const T *x_g = x.row(n) + g * K, *dy_g = dy.row(n) + g * K, *w = weight.data;
      T* dx_g = dx.row(n) + g * K;
      const T r = rstd.row(n)[g];
      T sum = 0;
      if constexpr (is_real<T>) {
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < K; ++k) sum += dy_g[k] * w[k] * x_g[k];
      } else {
        for (int64_t k = 0; k < K; ++k) sum += dy_g[k] * w[k] * x_g[k];
      }
      const T along_x = sum * r * r / static_cast<T>(K);
      if (beta == 0.0f) {
#pragma omp simd
        for (int64_t k = 0; k < K; ++k) dx_g[k] = r * (dy_g[k] * w[k] - x_g[k] * along_x);
      } else {
        const T keep = static_cast<T>(beta);
#pragma omp simd
        for (int64_t k = 0; k < K; ++k) {
          dx_g[k] = keep * dx_g[k] + r * (dy_g[k] * w[k] - x_g[k] * along_x);
        }
      }
    }
  }
}

}  // namespace utrain::cpu
