// What the ranks compute on, as far as it is decided without opening anything.
#include "app/machine.h"

#include <gtest/gtest.h>

namespace utrain {
namespace {

TEST(Machine, AutoIsBfloat16WhereTheGpuHasIt) {
  EXPECT_EQ(dtype_on_gpu("auto", 75), DType::f16);
  EXPECT_EQ(dtype_on_gpu("auto", 80), DType::bf16);
  EXPECT_EQ(dtype_on_gpu("auto", 90), DType::bf16);
}

TEST(Machine, ADtypeThatIsNamedIsTaken) {
  for (const int compute_capability : {75, 90}) {
    EXPECT_EQ(dtype_on_gpu("float32", compute_capability), DType::f32);
    EXPECT_EQ(dtype_on_gpu("float16", compute_capability), DType::f16);
    EXPECT_EQ(dtype_on_gpu("bfloat16", compute_capability), DType::bf16);
  }
}

}  // namespace
}  // namespace utrain
