// What the attention kernels of Hopper share: who does what in a block, tiles on their way to shared memory,
// products of whole tiles.
//   A block is a producer warpgroup, of which one warp asks the copy engine for tiles, and consumer
//   warpgroups of 64 rows each. A ring of stages lies between them: a stage is full when its bytes
//   have come, empty when every warp of the consumers has read it.
//   Blocks stay and take items (a head and a block of rows) by a counter, so that the next item's
//   tiles come while the last one is written.
#pragma once

#include "attention.cuh"
#include "hopper.cuh"
#include "tile_map.h"

namespace utrain::cuda {

inline constexpr int kWarpgroup = 128, kWarpgroupRows = 64;

// Where in a ring of kStages, and in which of its rounds.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;  // parity

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      round ^= 1;
    }
  }
};

// Barriers of a ring: full, then empty ones.
template <int kStages>
struct Ring {
  uint32_t barriers;

  static constexpr uint32_t kBytes = 2 * kStages * 8;
  using Place = RingPlace<kStages>;
  __device__ void init(int full_arrivals, int empty_arrivals) const {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(barriers + i * 8, full_arrivals);
      barrier_init(barriers + (kStages + i) * 8, empty_arrivals);
    }
  }
  __device__ uint32_t full(const Place& at) const { return barriers + at.stage * 8; }
  __device__ void wait_until_full(const Place& at) const { wait_for_phase(full(at), at.round); }
  __device__ void wait_until_empty(const Place& at) const {
    wait_for_phase(barriers + (kStages + at.stage) * 8, at.round ^ 1);
  }
  // By every consumer warp.
  __device__ void release(const Place& at) const {
    if (threadIdx.x % 32 == 0) arrive(barriers + (kStages + at.stage) * 8);
  }
};

template <int kRows, int D>
inline constexpr uint32_t kTileBytes = kRows * D * 2;

// Starts copying the tile [kRows, D] at (column, row); rows past the end become zeros. map: of kRows
// x 64.
template <int kRows, int D>
__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap& map, int column, int row,
                                          uint32_t barrier) {
#pragma unroll
  for (int d = 0; d < D; d += kPanelColumns) {
    copy_panel(to + d * kRows * 2, map, column + d, row, barrier);
  }
}

// c [64, 8 kN] = A B': rows `a` of a tile [kRowsA, D], tile `b` [kRowsB, D].
template <class T, int D, int kRowsA, int kRowsB, int kN>
__device__ __forceinline__ void start_nt(float (&c)[1][kN][4], uint32_t a, uint32_t b) {
  const auto at = [](uint32_t tile, int rows, int k) {
    return rows_operand(tile + k / kPanelColumns * rows * kPanelRowBytes + k % kPanelColumns * 2);
  };
  Products<T, kN>::template multiply_rows<false>(c[0], at(a, kRowsA, 0), at(b, kRowsB, 0));
#pragma unroll
  for (int k = 16; k < D; k += 16) {
    Products<T, kN>::template multiply_rows<true>(c[0], at(a, kRowsA, k), at(b, kRowsB, k));
  }
}

// c [64, D] += A B: fragments of A [64, 16 kK], tile `b` [16 kK, D].
template <class T, int D, int kK>
__device__ __forceinline__ void start_nn(float (&c)[1][D / 8][4], const uint32_t (&a)[1][kK][4],
                                         uint32_t b) {
#pragma unroll
  for (int k = 0; k < kK; ++k) {
    Products<T, D / 8>::multiply_columns(
        c[0], a[0][k],
        columns_operand(b + k * 16 * kPanelRowBytes, kK * 16 * kPanelRowBytes));
  }
}

// A block of queries of a head and the tiles of keys that they see. Late queries see more: they go
// first.
template <int kQueries, int kKeys>
struct QueryItem {
  int head, first_query;
  Interval tiles;

  template <class Operands>
  __device__ QueryItem(int i, const Operands& x) {
    const int n_rows = x.visibility.n_rows;
    head = i % x.Hq;
    first_query = (ceil_div(n_rows, kQueries) - 1 - i / x.Hq) * kQueries;
    tiles = {x.visibility.keys_of(first_query).first / kKeys,
             (min(first_query + kQueries, n_rows) - 1) / kKeys};
  }
};

// For copy_tile: x [n_rows, n_cols] in tiles of tile_rows.
template <class T>
CUtensorMap tile_map(const T* x, int64_t n_rows, int64_t n_cols, int64_t ld, int tile_rows) {
  return tile_map(x, DTypeOf<T>::value, n_rows, n_cols, ld, tile_rows);
}

}  // namespace utrain::cuda
