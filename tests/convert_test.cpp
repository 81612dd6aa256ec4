// float32 <-> 16-bit types: every 16-bit value survives the round trip, and rounding is to nearest
// even.
#include "core/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace utrain {
namespace {

float through(DType dtype, float x) {
  uint16_t bits = 0;
  from_float(dtype, &x, 1, &bits);
  float y = 0;
  to_float(dtype, &bits, 1, &y);
  return y;
}

TEST(Convert, EverySixteenBitValueSurvives) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (uint32_t i = 0; i <= 0xFFFF; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      float x = 0;
      to_float(dtype, &bits, 1, &x);
      uint16_t back = 0;
      from_float(dtype, &x, 1, &back);
      if (std::isnan(x)) {
        float again = 0;
        to_float(dtype, &back, 1, &again);
        EXPECT_TRUE(std::isnan(again));
      } else {
        ASSERT_EQ(bits, back) << name_of(dtype) << " " << x;
      }
    }
  }
}

TEST(Convert, RoundsToNearestEven) {
  EXPECT_EQ(through(DType::bf16, 1.0f + 0x1p-8f), 1.0f);                    // tie, even below
  EXPECT_EQ(through(DType::bf16, 1.0f + 3 * 0x1p-8f), 1.0f + 4 * 0x1p-8f);  // tie, even above
  EXPECT_EQ(through(DType::bf16, 1.0f + 0x1p-8f + 0x1p-20f), 1.0f + 0x1p-7f);
  EXPECT_EQ(through(DType::f16, 1.0f + 0x1p-11f), 1.0f);
  EXPECT_EQ(through(DType::f16, 1.0f + 3 * 0x1p-11f), 1.0f + 4 * 0x1p-11f);
  EXPECT_EQ(through(DType::f16, 65519.0f), 65504.0f);
  EXPECT_TRUE(std::isinf(through(DType::f16, 65520.0f)));
  EXPECT_EQ(through(DType::f16, 0x1p-25f), 0.0f);  // tie at half the smallest subnormal
  EXPECT_EQ(through(DType::f16, 1.5f * 0x1p-24f), 0x1p-23f);
  EXPECT_TRUE(std::isinf(through(DType::bf16, 3.4028235e38f)));
}

}  // namespace
}  // namespace utrain
