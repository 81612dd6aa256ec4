// Number types of tensors. f64 and c128 exist for the oracles: the whole model runs in them on the
// CPU.
#pragma once

#include <complex>
#include <cstdint>
#include <string_view>

#include "core/error.h"

namespace utrain {

enum class DType : uint8_t { f32, bf16, f16, f64, c128 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return 4;
    case DType::bf16: return 2;
    case DType::f16: return 2;
    case DType::f64: return 8;
    case DType::c128: return 16;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
    case DType::f64: return "float64";
    case DType::c128: return "complex128";
  }
  return "?";
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<std::complex<double>> {
  static constexpr DType value = DType::c128;
};
template <class T>
inline constexpr DType dtype_of = DTypeOf<T>::value;

}  // namespace utrain
