#include "model/rope_table.h"

#include <cmath>
#include <numbers>

namespace utrain {

std::vector<float> rope_frequencies(const Rope& rope, int64_t D) {
  std::vector<float> frequencies;
  for (int64_t i = 0; i < D / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(D);
    float f = static_cast<float>(1.0 / std::pow(rope.theta, static_cast<double>(exponent)));
    if (rope.type == Rope::Type::llama3) {
      // Long wavelengths are stretched by factor, short ones kept, those between interpolated.
      const double original = static_cast<double>(rope.original_max_position_embeddings);
      const double wavelength = 2.0 * std::numbers::pi / f;
      if (wavelength > original / rope.low_freq_factor) {
        f = static_cast<float>(f / rope.factor);
      } else if (wavelength >= original / rope.high_freq_factor) {
        const double smooth = (original / wavelength - rope.low_freq_factor) /
                              (rope.high_freq_factor - rope.low_freq_factor);
        f = static_cast<float>((1.0 - smooth) * f / rope.factor + smooth * f);
      }
    }
    frequencies.push_back(f);
  }
  return frequencies;
}

std::vector<float> rope_table(const Rope& rope, int64_t D, int64_t n_positions) {
  const std::vector<float> frequencies = rope_frequencies(rope, D);
  std::vector<float> table(static_cast<size_t>(n_positions * D));
  for (int64_t position = 0; position < n_positions; ++position) {
    float* row = &table[static_cast<size_t>(position * D)];
    for (int64_t i = 0; i < D / 2; ++i) {
      const float angle = static_cast<float>(position) * frequencies[static_cast<size_t>(i)];
      row[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      row[D / 2 + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  return table;
}

}  // namespace utrain
