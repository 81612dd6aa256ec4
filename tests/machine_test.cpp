// What the ranks compute on, as far as it is decided without opening anything.
#include "app/machine.h"

#include <gtest/gtest.h>

namespace utrain {
namespace {

TEST(Machine, AutoIsFloat32OnTheCpuAndBfloat16WhereTheGpuHasIt) {
  EXPECT_EQ(meaning_of_dtype("auto", kNoGpu), DType::f32);
  EXPECT_EQ(meaning_of_dtype("auto", 75), DType::f16);
  EXPECT_EQ(meaning_of_dtype("auto", 80), DType::bf16);
  EXPECT_EQ(meaning_of_dtype("auto", 90), DType::bf16);
}

TEST(Machine, ADtypeThatIsNamedIsTaken) {
  for (const int compute_capability : {kNoGpu, 75, 90}) {
    EXPECT_EQ(meaning_of_dtype("float32", compute_capability), DType::f32);
    EXPECT_EQ(meaning_of_dtype("float16", compute_capability), DType::f16);
    EXPECT_EQ(meaning_of_dtype("bfloat16", compute_capability), DType::bf16);
  }
}

}  // namespace
}  // namespace utrain
