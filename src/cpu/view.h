// A Tensor whose dtype has been checked, and loops over its rows that compilers vectorise.
// T is float, double or complex<double>. Rules that keep every forward analytic, so that the
// complex step works: no abs, no conj, and comparisons look at the real part alone. Sums run over
// fixed lanes in T: equal calls give equal bits, whatever the number of threads.
#pragma once

#include <algorithm>
#include <complex>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/tensor.h"

namespace utrain::cpu {

template <class T>
struct RealOf {
  using type = T;
};
template <class R>
struct RealOf<std::complex<R>> {
  using type = R;
};
template <class T>
using Real = typename RealOf<T>::type;

template <class T>
inline constexpr bool is_real = std::is_floating_point_v<T>;

// What sums over many rows are kept in: loss_dtype of the backend.
template <class T>
using Wide = std::conditional_t<is_real<T>, double, T>;

template <class T>
Real<T> real_of(T x) {
  if constexpr (is_real<T>) {
    return x;
  } else {
    return x.real();
  }
}

template <class T>
struct View {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, ld = 0;

  View() = default;
  View(T* data, int64_t rows, int64_t cols, int64_t ld)
      : data(data), rows(rows), cols(cols), ld(ld) {}
  // Implicit: operands are checked where they enter an operation.
  View(const Tensor& x) {
    if (x.empty()) return;
    ASSERT(x.rows >= 0 && x.cols >= 0 && (x.ld >= x.cols || x.rows <= 1));
    *this = View(x.as<T>(), x.rows, x.cols, x.ld);
  }

  bool empty() const { return data == nullptr; }
  bool is(int64_t n_rows, int64_t n_cols) const { return rows == n_rows && cols == n_cols; }
  T* row(int64_t i) const { return data + i * ld; }
  View columns(int64_t begin, int64_t n) const { return {data + begin, rows, n, ld}; }
  View row_range(int64_t begin, int64_t n) const { return {data + begin * ld, n, cols, ld}; }
};

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
  if constexpr (is_real<T>) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  } else {
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  }
  return sum;
}

// The largest real part; -infinity for n = 0.
template <class T>
Real<T> max_of(const T* x, int64_t n) {
  Real<T> largest = -std::numeric_limits<Real<T>>::infinity();
  if constexpr (is_real<T>) {
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, x[i].real());
  }
  return largest;
}

template <class T, class Scale>
void scale_row(T* x, Scale scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

// y += scale * x
template <class T>
void add_scaled(T* y, T scale, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += scale * x[i];
}

// An index from a batch is checked before it is followed.
inline bool all_below(const int32_t* index, int64_t n, int64_t limit) {
  bool good = true;
  for (int64_t i = 0; i < n; ++i) good = good && index[i] >= 0 && index[i] < limit;
  return good;
}

}  // namespace utrain::cpu
