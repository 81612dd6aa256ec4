#include "core/normal.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>

#include "core/error.h"
#include "core/random.h"

namespace utrain {

namespace {

constexpr int64_t kLanes = 256;
constexpr int64_t kBlock = 4 * kLanes;

// -2 log u for u in (0, 1]: u = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s) with
// s = (m - 1) / (m + 1), |s| < 0.172, by its series: relative error 2e-9 before rounding.
float minus_two_log(float u) {
  constexpr float half_root = 0x1.6a09e6p-1f;
  const int32_t bits = std::bit_cast<int32_t>(u);
  const int32_t e = (bits - std::bit_cast<int32_t>(half_root)) >> 23;
  const float m = std::bit_cast<float>(bits - e * (1 << 23));
  const float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  const float series = 1.0f + s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 / 9.0f)));
  return -2.0f * (static_cast<float>(e) * std::numbers::ln2_v<float> + 2.0f * s * series);
}

// cos and sin of 2 pi word / 2^32: the nearest quarter turn and a rest of at most pi / 4, by their
// series: error 3e-8 before rounding.
struct Turn {
  float cos, sin;
};
Turn turn(uint32_t word) {
  const uint32_t quarters = (word + (1u << 29)) >> 30;
  const auto rest = static_cast<int32_t>(word - (quarters << 30));
  const float x = static_cast<float>(rest) * (2.0f * std::numbers::pi_v<float> * 0x1p-32f);
  const float x2 = x * x;
  const float sin =
      x * (1.0f + x2 * (-1.0f / 6 + x2 * (1.0f / 120 + x2 * (-1.0f / 5040 + x2 / 362880.0f))));
  const float cos = 1.0f + x2 * (-1.0f / 2 + x2 * (1.0f / 24 + x2 * (-1.0f / 720 + x2 / 40320.0f)));
  const bool odd = (quarters & 1) != 0;
  const uint32_t cos_sign = ((quarters + 1) & 2) << 30, sin_sign = (quarters & 2) << 30;
  return {std::bit_cast<float>(std::bit_cast<uint32_t>(odd ? sin : cos) ^ cos_sign),
          std::bit_cast<float>(std::bit_cast<uint32_t>(odd ? cos : sin) ^ sin_sign)};
}

void box_muller(float stddev, const uint32_t* radius_words, const uint32_t* angle_words,
                float* cosines, float* sines) {
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    // 31 bits, since vectors of them convert as signed integers.
    const float u =
        (static_cast<float>(static_cast<int32_t>(radius_words[lane] >> 1)) + 0.5f) * 0x1p-31f;
    const float radius = stddev * std::sqrt(minus_two_log(u));
    const Turn t = turn(angle_words[lane]);
    cosines[lane] = radius * t.cos;
    sines[lane] = radius * t.sin;
  }
}

// Always a whole block, so that an element comes from the same instructions whoever asks for it.
void fill_block(uint64_t key, float stddev, int64_t block, float* out) {
  alignas(64) uint32_t words[4][kLanes];
  const auto low = static_cast<uint32_t>(block * kLanes);
  const auto high = static_cast<uint32_t>((block * kLanes) >> 32);
#pragma omp simd
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const Philox p = philox(key, low + static_cast<uint32_t>(lane), high, 0, 1);
    words[0][lane] = p.x[0];
    words[1][lane] = p.x[1];
    words[2][lane] = p.x[2];
    words[3][lane] = p.x[3];
  }
  box_muller(stddev, words[0], words[1], out, out + kLanes);
  box_muller(stddev, words[2], words[3], out + 2 * kLanes, out + 3 * kLanes);
}

}  // namespace

void fill_normal(uint64_t key, float stddev, int64_t first, int64_t n, float* out) {
  ASSERT(first >= 0 && n >= 0);
  while (n > 0) {
    const int64_t block = first / kBlock, skip = first % kBlock;
    const int64_t here = std::min(n, kBlock - skip);
    if (here == kBlock) {
      fill_block(key, stddev, block, out);
    } else {
      alignas(64) float values[kBlock];
      fill_block(key, stddev, block, values);
      std::memcpy(out, values + skip, static_cast<size_t>(here) * sizeof(float));
    }
    first += here;
    out += here;
    n -= here;
  }
}

}  // namespace utrain
