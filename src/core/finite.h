// Whether numbers are all finite: what is read, kept or left behind has no others.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

namespace utrain {

inline bool are_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace utrain
