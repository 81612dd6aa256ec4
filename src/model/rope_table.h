// cos_sin [positions, D] float32: D/2 cosines, then D/2 sines of position * frequency, as
// transformers computes them (frequencies and angles in float32). RoPE: Su et al. 2021,
// arXiv:2104.09864
#pragma once

#include <vector>

#include "model/architecture.h"

namespace utrain {

std::vector<float> rope_frequencies(const Rope& rope, int64_t D);  // [D/2]
std::vector<float> rope_table(const Rope& rope, int64_t D, int64_t n_positions);

}  // namespace utrain
