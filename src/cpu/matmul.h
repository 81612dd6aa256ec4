// c = alpha * op(a) op(b) + beta * c, the only file that calls BLAS
//   matmul_nt  c [m, n] = a [m, k] b [n, k]'      y = x W'
//   matmul_nn  c [m, n] = a [m, k] b [k, n]       dx = dy W
//   matmul_tn  c [m, n] = a [k, m]' b [k, n]      dA = dxa' x
//   beta = 0: c is overwritten and not read. ' is the plain transpose, also of complex matrices.
//   Accumulates in T, in the order of BLAS: equal calls with equal threads give equal bits. Called
//   inside a parallel region, OpenBLAS keeps to the calling thread.
#pragma once

#include <cblas.h>

#include "cpu/view.h"

namespace utrain::cpu {

enum class Transpose : int { no = CblasNoTrans, yes = CblasTrans };

template <class T>
struct Product {
  View<T> c, a, b;
  Transpose transpose_a, transpose_b;
  int64_t k;
  T alpha, beta;
};

inline void gemm(const Product<float>& p) {
  cblas_sgemm(CblasRowMajor, static_cast<CBLAS_TRANSPOSE>(p.transpose_a),
              static_cast<CBLAS_TRANSPOSE>(p.transpose_b), p.c.rows, p.c.cols, p.k, p.alpha,
              p.a.data, p.a.ld, p.b.data, p.b.ld, p.beta, p.c.data, p.c.ld);
}
inline void gemm(const Product<double>& p) {
  cblas_dgemm(CblasRowMajor, static_cast<CBLAS_TRANSPOSE>(p.transpose_a),
              static_cast<CBLAS_TRANSPOSE>(p.transpose_b), p.c.rows, p.c.cols, p.k, p.alpha,
              p.a.data, p.a.ld, p.b.data, p.b.ld, p.beta, p.c.data, p.c.ld);
}
inline void gemm(const Product<std::complex<double>>& p) {
  cblas_zgemm(CblasRowMajor, static_cast<CBLAS_TRANSPOSE>(p.transpose_a),
              static_cast<CBLAS_TRANSPOSE>(p.transpose_b), p.c.rows, p.c.cols, p.k, &p.alpha,
              p.a.data, p.a.ld, p.b.data, p.b.ld, &p.beta, p.c.data, p.c.ld);
}

template <class T>
void matmul(const Product<T>& p) {
  constexpr int64_t blas_limit = std::numeric_limits<blasint>::max();
  if (p.c.rows == 0 || p.c.cols == 0) return;
  ASSERT(p.c.rows <= blas_limit && p.c.cols <= blas_limit && p.k <= blas_limit);
  ASSERT(p.a.ld <= blas_limit && p.b.ld <= blas_limit && p.c.ld <= blas_limit);
  if (p.k > 0) {
    gemm(p);
    return;
  }
  for (int64_t i = 0; i < p.c.rows; ++i) {
    for (int64_t j = 0; j < p.c.cols; ++j) {
      p.c.row(i)[j] = p.beta == static_cast<T>(0) ? static_cast<T>(0) : p.beta * p.c.row(i)[j];
    }
  }
}

template <class T>
void matmul_nt(View<T> c, View<T> a, View<T> b, T alpha = 1, T beta = 0) {
  ASSERT(a.rows == c.rows && b.rows == c.cols && a.cols == b.cols);
  matmul<T>({c, a, b, Transpose::no, Transpose::yes, a.cols, alpha, beta});
}

template <class T>
void matmul_nn(View<T> c, View<T> a, View<T> b, T alpha = 1, T beta = 0) {
  ASSERT(a.rows == c.rows && b.cols == c.cols && a.cols == b.rows);
  matmul<T>({c, a, b, Transpose::no, Transpose::no, a.cols, alpha, beta});
}

template <class T>
void matmul_tn(View<T> c, View<T> a, View<T> b, T alpha = 1, T beta = 0) {
  ASSERT(a.cols == c.rows && b.cols == c.cols && a.rows == b.rows);
  matmul<T>({c, a, b, Transpose::yes, Transpose::no, a.rows, alpha, beta});
}

}  // namespace utrain::cpu
