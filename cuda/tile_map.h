// How Hopper's copy engine finds tiles of a matrix: panels of tile_rows x 64 columns, laid out as
// hopper.cuh says.
#pragma once

#include <cuda.h>

#include "core/tensor.h"

namespace utrain::cuda {

inline constexpr int kPanelColumns = 64;  // of 16 bits

// x [n_rows, n_cols], dtype bf16 or f16, at a multiple of 16 bytes, ld a multiple of 8, n_cols of
// 64; tile_rows a multiple of 8, at most 256. Rows past the end read as zeros.
CUtensorMap tile_map(const void* x, DType dtype, int64_t n_rows, int64_t n_cols, int64_t ld,
                     int tile_rows);

}  // namespace utrain::cuda
