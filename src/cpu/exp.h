// exp that compilers vectorise, for float: e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2) / 2.
//   e^r = 1 + r + r^2 q(r), q the polynomial of degree 4 that meets (e^r - 1 - r) / r^2 at the
//   Chebyshev nodes: 1.1e-8. Relative error <= 2e-7 down to the smallest normal number; denormals,
//   0, infinity and NaN as in std::exp. Other T use std::exp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace utrain::cpu {

template <class T>
T exp_of(T x) {
  return std::exp(x);
}

template <>
inline float exp_of(float x) {
  // Outside these the result is 0 or infinity already. A NaN fails both comparisons and stays.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  // Adding 1.5 * 2^23 leaves round(x / ln 2) in the low bits of the significand.
  constexpr float shift = 0x1.8p23f;
  const float shifted = x * 0x1.715476p0f + shift;
  const int32_t n =
      static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(shift));
  const float n_float = shifted - shift;
  // ln 2 in two parts; the first has few bits, so that its product with n is exact.
  const float r = (x - n_float * 0x1.63p-1f) - n_float * -0x1.bd0106p-13f;
  float q = 0x1.6d1606p-10f;
  q = q * r + 0x1.12106cp-7f;
  q = q * r + 0x1.555516p-5f;
  q = q * r + 0x1.5554d8p-3f;
  q = q * r + 0.5f;
  const float e = (q * r) * r + r + 1.0f;
  // 2^n in two factors: n may be past the range of one exponent.
  const int32_t n_half = n >> 1;
  const auto power = [](int32_t k) {
    return std::bit_cast<float>(static_cast<uint32_t>(k + 127) << 23);
  };
  return e * power(n_half) * power(n - n_half);
}

}  // namespace utrain::cpu
