// Normal random numbers: any range is that part of the whole bit for bit, each is what its words
// give by the library's functions, and their distribution is N(0, 1).
#include "core/normal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "core/random.h"

namespace utrain {
namespace {

std::vector<float> normals(uint64_t key, float stddev, int64_t first, int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  fill_normal(key, stddev, first, n, values.data());
  return values;
}

TEST(Normal, RangesArePartsOfTheWhole) {
  const std::vector<float> whole = normals(5, 0.02f, 0, 5000);
  const std::vector<int64_t> cuts = {0, 1, 255, 256, 1023, 1024, 1025, 2048, 3333, 4096, 5000};
  for (size_t i = 0; i < cuts.size(); ++i) {
    for (size_t j = i; j < cuts.size(); ++j) {
      const int64_t n = cuts[j] - cuts[i];
      const std::vector<float> part = normals(5, 0.02f, cuts[i], n);
      EXPECT_TRUE(n == 0 || std::memcmp(part.data(), whole.data() + cuts[i],
                                        static_cast<size_t>(n) * sizeof(float)) == 0)
          << "[" << cuts[i] << ", " << cuts[j] << ")";
    }
  }
}

// The formula of the header, in double.
struct Exact {
  double value, radius;
};
Exact exact(uint64_t key, int64_t i) {
  const int64_t counter = i / 1024 * 256 + i % 256, which = i % 1024 / 256;
  const Philox p =
      philox(key, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 1);
  const uint32_t radius_word = p.x[which / 2 * 2], angle_word = p.x[which / 2 * 2 + 1];
  const double u = (static_cast<double>(radius_word >> 1) + 0.5) * 0x1p-31;
  const double radius = std::sqrt(-2.0 * std::log(u));
  const double angle = 2.0 * std::numbers::pi * static_cast<double>(angle_word) * 0x1p-32;
  return {radius * (which % 2 == 0 ? std::cos(angle) : std::sin(angle)), radius};
}

// Far elements too: their counters do not fit in one word.
TEST(Normal, IsTheFormula) {
  constexpr int64_t kN = 300'000;
  for (const int64_t first : {int64_t{0}, int64_t{1} << 34, (int64_t{1} << 40) + 77}) {
    const std::vector<float> values = normals(9, 1.0f, first, kN);
    for (int64_t i = 0; i < kN; ++i) {
      const Exact wanted = exact(9, first + i);
      // u next to 1 is rounded to 24 bits twice: that much of radius^2 / 2.
      const double rounding_of_u = std::min(0x1p-24 / wanted.radius, 0x1p-11);
      ASSERT_NEAR(values[static_cast<size_t>(i)], wanted.value, 1e-6 + rounding_of_u) << first + i;
    }
  }
}

// Bounds of five standard errors.
TEST(Normal, IsDistributedAsN01) {
  constexpr int64_t kN = 1 << 22;
  for (const uint64_t key : {uint64_t{1}, mix(2), mix(3407)}) {
    const std::vector<float> values = normals(key, 1.0f, 0, kN);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, lag1 = 0, lag256 = 0, largest = 0;
    std::vector<int64_t> above(6), below(6);
    for (size_t i = 0; i < values.size(); ++i) {
      const double x = values[i];
      m1 += x;
      m2 += x * x;
      m3 += x * x * x;
      m4 += x * x * x * x;
      if (i >= 1) lag1 += x * values[i - 1];
      if (i >= 256) lag256 += x * values[i - 256];
      largest = std::max(largest, std::abs(x));
      for (size_t t = 0; t < 6; ++t) {
        above[t] += x > static_cast<double>(t);
        below[t] += x < -static_cast<double>(t);
      }
    }
    constexpr auto n = static_cast<double>(kN);
    const double error = 5.0 / std::sqrt(n);
    EXPECT_NEAR(m1 / n, 0.0, error);
    EXPECT_NEAR(m2 / n, 1.0, error * std::sqrt(2.0));
    EXPECT_NEAR(m3 / n, 0.0, error * std::sqrt(15.0));
    EXPECT_NEAR(m4 / n, 3.0, error * std::sqrt(96.0));
    EXPECT_NEAR(lag1 / n, 0.0, error);
    EXPECT_NEAR(lag256 / n, 0.0, error);  // the sine of the same pair
    for (size_t t = 0; t < 6; ++t) {
      const double wanted = n * 0.5 * std::erfc(static_cast<double>(t) / std::numbers::sqrt2);
      EXPECT_NEAR(static_cast<double>(above[t]), wanted, 5.0 * std::sqrt(wanted) + 5.0) << t;
      EXPECT_NEAR(static_cast<double>(below[t]), wanted, 5.0 * std::sqrt(wanted) + 5.0) << t;
    }
    EXPECT_GT(largest, 4.0);
    EXPECT_LT(largest, 6.7);
  }
}

}  // namespace
}  // namespace utrain
