// Large arrays that pass through memory nobody planned for do so in pieces of one size, whatever the
// size of the whole.
#pragma once

#include <algorithm>
#include <cstdint>

namespace utrain {

inline constexpr int64_t kPieceElems = int64_t{1} << 20;

// work(first, n) for the pieces of [0, n_elem), in this order.
template <typename Work>
void for_pieces(int64_t n_elem, const Work& work, int64_t piece_elems = kPieceElems) {
  for (int64_t first = 0; first < n_elem; first += piece_elems)
    work(first, std::min(piece_elems, n_elem - first));
}

}  // namespace utrain
