// What a rank gives to a checkpoint, or takes from one: parts of the flat trainable buffer
// (model/trainable.h), whatever strategy and number of ranks cut it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace utrain {

// Elements [begin, begin + n_elem) of the flat buffer.
struct Slice {
  int64_t begin = 0, n_elem = 0;
};

// What there is of each element, all float32, by their names in files; m and v: Adam's moments.
inline constexpr std::array<const char*, 3> kArrayNames = {"parameters", "m", "v"};

// Of one rank, in host memory: slices in ascending order, apart from each other; of each array
// [sum of n_elem] the slices one after another. The slices of all ranks cover the buffer once.
struct ShardState {
  std::vector<Slice> slices;
  const float* parameters = nullptr;
  const float* m = nullptr;  // Adam's moments
  const float* v = nullptr;

  int64_t n_elem() const {
    int64_t n = 0;
    for (const Slice& slice : slices) n += slice.n_elem;
    return n;
  }
};

}  // namespace utrain
