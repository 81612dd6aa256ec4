// What ranks add up and exchange in tests.
#pragma once

#include <cmath>
#include <complex>
#include <cstring>
#include <vector>

#include "core/tensor.h"

namespace utrain {

// Values of mixed sign and magnitude, so that another order of adding shows in the bits.
inline double value(int rank, int64_t i) {
  uint64_t x = static_cast<uint64_t>(i) * 2654435761u + static_cast<uint64_t>(rank) * 40503u + 17;
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9u, x ^= x >> 32;
  const double mantissa = static_cast<double>(x % 1000003) / 1000003.0 - 0.5;
  return std::ldexp(mantissa, static_cast<int>(x >> 40) % 12);
}

template <class T>
T element(int rank, int64_t i) {
  if constexpr (std::is_same_v<T, std::complex<double>>) {
    return {value(rank, i), value(rank + 100, i)};
  } else {
    return static_cast<T>(value(rank, i));
  }
}

template <class T>
std::vector<T> part(int rank, int64_t n) {
  std::vector<T> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = element<T>(rank, i);
  return x;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
Tensor view(std::vector<T>& x) {
  return make_tensor(x.data(), dtype_of<T>, 1, std::ssize(x));
}

}  // namespace utrain
