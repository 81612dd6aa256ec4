#include "core/finite.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace utrain {
namespace {

TEST(Finite, IsEveryNumberButInfinitiesAndNaN) {
  using Limits = std::numeric_limits<float>;
  EXPECT_TRUE(are_finite({}));
  const std::vector<float> numbers = {0.0f, -0.0f, Limits::max(), Limits::lowest(),
                                      Limits::denorm_min()};
  EXPECT_TRUE(are_finite(numbers));
  for (const float bad : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN()}) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      std::vector<float> values = numbers;
      values[i] = bad;
      EXPECT_FALSE(are_finite(values)) << bad << " at " << i;
    }
  }
}

}  // namespace
}  // namespace utrain
