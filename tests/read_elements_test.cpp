// Elements of safetensors: every stored value is converted exactly or rounded to nearest even, from
// any byte on; a range outside the tensor is refused.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>

#include "core/convert.h"
#include "io/safetensors.h"

namespace utrain {
namespace {

// The value of a float16 by its definition.
double value_of_f16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

StoredTensor view(FileDType dtype, const std::string& bytes, size_t skip) {
  StoredTensor tensor;
  tensor.dtype = dtype;
  tensor.data = reinterpret_cast<const std::byte*>(bytes.data()) + skip;
  tensor.bytes = static_cast<int64_t>(bytes.size() - skip);
  tensor.shape = {tensor.bytes * 8 / bits_of(dtype)};
  return tensor;
}

TEST(ReadElements, EveryFloat16AndBfloat16FromUnalignedBytes) {
  std::string bytes = "?";
  for (int i = 0; i < 65536; ++i) {
    bytes += static_cast<char>(i);
    bytes += static_cast<char>(i >> 8);
  }
  std::vector<float> f16(65536), bf16(65536);
  std::vector<double> f16_double(65536), bf16_double(65536);
  read_elements(view(FileDType::f16, bytes, 1), 0, 65536, f16.data());
  read_elements(view(FileDType::bf16, bytes, 1), 0, 65536, bf16.data());
  read_elements(view(FileDType::f16, bytes, 1), 0, 65536, f16_double.data());
  read_elements(view(FileDType::bf16, bytes, 1), 0, 65536, bf16_double.data());
  for (uint32_t i = 0; i < 65536; ++i) {
    const double want = value_of_f16(static_cast<uint16_t>(i));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(f16[i]) && std::isnan(f16_double[i])) << i;
    } else {
      ASSERT_EQ(static_cast<double>(f16[i]), want) << i;
      ASSERT_EQ(f16_double[i], want) << i;
      ASSERT_EQ(std::signbit(f16[i]), (i & 0x8000) != 0) << i;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(bf16[i]), i << 16) << i;
    ASSERT_TRUE(std::isnan(bf16[i]) || bf16_double[i] == static_cast<double>(bf16[i])) << i;
  }
}

// The tensor's own type is copied, NaNs with their bits; another is rounded from float32.
TEST(ReadElements, AnyTypeOfSixteenBitsIntoAny) {
  std::string bytes = "?";
  for (int i = 0; i < 65536; ++i) {
    bytes += static_cast<char>(i);
    bytes += static_cast<char>(i >> 8);
  }
  constexpr int64_t first = 77, n = 65536 - 2 * first;
  for (const auto& [file, own, other] : {std::tuple{FileDType::f16, DType::f16, DType::bf16},
                                         std::tuple{FileDType::bf16, DType::bf16, DType::f16}}) {
    std::vector<float> values(n);
    read_elements(view(file, bytes, 1), first, n, values.data());
    for (const DType dtype : {own, other, DType::f32, DType::f64}) {
      const auto size = static_cast<size_t>(n * size_of(dtype));
      std::vector<char> wanted(size), found(size);
      from_float(dtype, values.data(), n, wanted.data());
      if (dtype == own) std::memcpy(wanted.data(), bytes.data() + 1 + 2 * first, size);
      read_elements(view(file, bytes, 1), first, n, dtype, found.data());
      EXPECT_EQ(std::memcmp(found.data(), wanted.data(), size), 0)
          << name_of(file) << " " << name_of(dtype);
    }
    prefetch_elements(view(file, bytes, 1), first, n);
    EXPECT_THROW(read_elements(view(file, bytes, 1), first, 65536, own, values.data()), Error);
  }
}

TEST(ReadElements, RangesOfFloat32AndFloat64) {
  const std::vector<float> x = {1.5f, -0.0f, 1e-45f, INFINITY, NAN, 3.0f};
  const std::vector<double> y = {0.1, -1e300, 5e-324, INFINITY};
  std::string x_bytes = "?", y_bytes = "???";
  x_bytes.append(reinterpret_cast<const char*>(x.data()), 4 * x.size());
  y_bytes.append(reinterpret_cast<const char*>(y.data()), 8 * y.size());
  std::vector<float> f(6);
  std::vector<double> d(6);
  read_elements(view(FileDType::f32, x_bytes, 1), 0, 6, f.data());
  EXPECT_EQ(std::memcmp(f.data(), x.data(), 24), 0);
  read_elements(view(FileDType::f32, x_bytes, 1), 2, 2, d.data());
  EXPECT_EQ(d[0], static_cast<double>(1e-45f));
  EXPECT_EQ(d[1], INFINITY);
  read_elements(view(FileDType::f64, y_bytes, 3), 0, 4, d.data());
  EXPECT_EQ(std::memcmp(d.data(), y.data(), 32), 0);
  read_elements(view(FileDType::f64, y_bytes, 3), 0, 2, f.data());
  EXPECT_EQ(f[0], 0.1f);
  EXPECT_EQ(f[1], -INFINITY);
  read_elements(view(FileDType::f64, y_bytes, 3), 4, 0, f.data());
  EXPECT_THROW(read_elements(view(FileDType::f32, x_bytes, 1), 5, 2, f.data()), Error);
  EXPECT_THROW(read_elements(view(FileDType::f64, y_bytes, 3), 3, 2, d.data()), Error);
  EXPECT_THROW(read_elements(view(FileDType::f32, x_bytes, 1), -1, 1, d.data()), Error);
  EXPECT_THROW(read_elements(view(FileDType::i32, x_bytes, 1), 0, 1, f.data()), Error);
}

}  // namespace
}  // namespace utrain
