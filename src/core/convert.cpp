#include "core/convert.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace utrain {

namespace {

uint16_t bf16_bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

uint16_t f16_bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00);
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t m = bits & 0x7FFFFFFF;
  const uint32_t rounded = m + 0xFFF + ((m >> 13) & 1);
  return static_cast<uint16_t>(sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13));
}

float from_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 0x1F, fraction = h & 0x3FF;
  float magnitude;
  if (exponent == 0) {
    magnitude = static_cast<float>(fraction) * 0x1p-24f;
  } else if (exponent == 31) {
    magnitude = std::bit_cast<float>(0x7F800000u | (fraction << 13));
  } else {
    magnitude = std::bit_cast<float>(((exponent + 112) << 23) | (fraction << 13));
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

template <class T, class F>
void each(const float* x, int64_t n, void* out, F f) {
  T* y = static_cast<T*>(out);
  for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

template <class T, class F>
void each_back(const void* x, int64_t n, float* y, F f) {
  const T* p = static_cast<const T*>(x);
  for (int64_t i = 0; i < n; ++i) y[i] = f(p[i]);
}

}  // namespace

void from_float(DType dtype, const float* x, int64_t n, void* out) {
  if (n == 0) return;  // x and out may be null
  switch (dtype) {
    case DType::f32: std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float)); return;
    case DType::bf16: return each<uint16_t>(x, n, out, bf16_bits);
    case DType::f16: return each<uint16_t>(x, n, out, f16_bits);
    case DType::f64: return each<double>(x, n, out, [](float v) { return static_cast<double>(v); });
    case DType::c128:
      return each<std::complex<double>>(x, n, out, [](float v) { return std::complex<double>(v); });
  }
}

void to_float(DType dtype, const void* x, int64_t n, float* out) {
  if (n == 0) return;
  switch (dtype) {
    case DType::f32: std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float)); return;
    case DType::bf16: return each_back<uint16_t>(x, n, out, from_bf16);
    case DType::f16: return each_back<uint16_t>(x, n, out, from_f16);
    case DType::f64:
      return each_back<double>(x, n, out, [](double v) { return static_cast<float>(v); });
    case DType::c128:
      return each_back<std::complex<double>>(
          x, n, out, [](std::complex<double> v) { return static_cast<float>(v.real()); });
  }
}

}  // namespace utrain
