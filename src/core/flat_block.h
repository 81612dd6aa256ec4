// Flat buffers (trainables, gradients, optimizer state) are laid out, summed and dealt to ranks in
// blocks of this many elements, so that no result depends on the number of ranks.
#pragma once

#include <cstdint>

namespace utrain {

inline constexpr int64_t kFlatBlock = 1024;

}  // namespace utrain
