// What the attention kernels of Hopper share: who does what in a block, tiles on their way to shared
// memory, products of whole tiles.
//   A block is a producer warpgroup, of which one warp asks the copy engine for tiles, and consumer
//   warpgroups of 64 rows each. A ring of stages lies between them: a stage is full when its bytes
//   have come, empty when every warp of the consumers has read it.
//   Where queries walk over keys, blocks stay and take items (a head and its queries) by a counter,
//   so that the next item's tiles come while the last one's rows are written.
#pragma once

#include "attention.cuh"
#include "hopper.cuh"

namespace utrain::cuda {

inline constexpr int kWarpgroup = 128, kWarpgroupRows = 64;
inline constexpr uint32_t kSharedBytesOfBlock = 227 * 1024;

// A block of so many consumer warpgroups, and what a thread has of its multiprocessor's 64 K
// registers.
template <int kConsumers>
struct Team {
  static_assert(kConsumers == 2 || kConsumers == 3);
  static constexpr int kThreads = kWarpgroup * (1 + kConsumers), kConsumerWarps = 4 * kConsumers;
  static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32,
                       kConsumerRegisters = kConsumers == 2 ? 240 : 160;
};

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
inline constexpr uint32_t kTileBytes = uint32_t{kRows} * D * 2;

// Starts copying the tile [kRows, D] at (column, row); rows past the end become zeros. map: of
// kRows x 64.
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
        c[0], a[0][k], columns_operand(b + k * 16 * kPanelRowBytes, kK * 16 * kPanelRowBytes));
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

// Where a block of queries walks over tiles of keys: what lies in shared memory. kHeld: tiles of
// queries.
template <int D, int kConsumers, int kKeys_, int kHeld>
struct KeyWalk {
  using Team = cuda::Team<kConsumers>;
  using Place = RingPlace<2>;
  static constexpr int kQueries = kWarpgroupRows * kConsumers, kKeys = kKeys_, kStages = 2;
  static constexpr uint32_t kQueryTile = kTileBytes<kQueries, D>, kKeyTile = kTileBytes<kKeys, D>;
  // Tiles of queries, K and V by stages, rows on their way out, barriers, the item.
  static constexpr uint32_t kKeyTiles = kHeld * kQueryTile,
                            kValueTiles = kKeyTiles + kStages * kKeyTile,
                            kOut = kValueTiles + kStages * kKeyTile, kQueryRing = kOut + kQueryTile,
                            kKeyRing = kQueryRing + Ring<1>::kBytes,
                            kValueRing = kKeyRing + Ring<kStages>::kBytes,
                            kItem = kValueRing + Ring<kStages>::kBytes, kSharedBytes = kItem + 8;
  static_assert(kQueryTile % kTileAlignment == 0 && kKeyTile % kTileAlignment == 0);
  static_assert(kSharedBytes <= kSharedBytesOfBlock);
  using Item = QueryItem<kQueries, kKeys>;

  uint32_t base;
  volatile int* item;
  Ring<1> queries;
  Ring<kStages> keys, values;

  __device__ explicit KeyWalk(unsigned char* shared)
      : base(shared_address(shared)),
        item(reinterpret_cast<int*>(shared + kItem)),
        queries{base + kQueryRing},
        keys{base + kKeyRing},
        values{base + kValueRing} {}
  // By all threads, before anything else.
  __device__ void init() const {
    if (threadIdx.x == 0) {
      queries.init(1, Team::kConsumerWarps);
      keys.init(1, Team::kConsumerWarps);
      values.init(1, Team::kConsumerWarps);
      barriers_are_ready();
    }
    __syncthreads();
  }
  __device__ uint32_t key_tile(const Place& at) const {
    return base + kKeyTiles + at.stage * kKeyTile;
  }
  __device__ uint32_t value_tile(const Place& at) const {
    return base + kValueTiles + at.stage * kKeyTile;
  }

  // The producer, one thread: all tiles of all items of this block. copy_queries(item, barrier)
  // starts copying those of queries.
  template <class Operands, class CopyQueries>
  __device__ void produce(const Operands& x, const CUtensorMap& k, const CUtensorMap& v,
                          int* next_item, CopyQueries copy_queries) const {
    const int n_items = ceil_div(x.visibility.n_rows, kQueries) * x.Hq;
    RingPlace<1> query_place;
    Place place;
    for (int i = blockIdx.x;; query_place.advance()) {
      const uint32_t full = queries.full(query_place);
      queries.wait_until_empty(query_place);
      *item = i;
      if (i >= n_items) return arrive(full);
      const Item found(i, x);
      arrive_and_expect(full, kHeld * kQueryTile);
      copy_queries(found, full);
      i = gridDim.x + atomicAdd(next_item, 1);
      const int column = found.head / (x.Hq / x.Hkv) * D;
      for (int tile = found.tiles.first; tile <= found.tiles.last; ++tile, place.advance()) {
        keys.wait_until_empty(place);
        arrive_and_expect(keys.full(place), kKeyTile);
        copy_tile<kKeys, D>(key_tile(place), k, column, tile * kKeys, keys.full(place));
        values.wait_until_empty(place);
        arrive_and_expect(values.full(place), kKeyTile);
        copy_tile<kKeys, D>(value_tile(place), v, column, tile * kKeys, values.full(place));
      }
    }
  }
  // A consumer: n tiles that it does not need.
  __device__ void skip(int n, Place& place) const {
    for (; n > 0; --n, place.advance()) {
      keys.wait_until_full(place);
      keys.release(place);
      values.wait_until_full(place);
      values.release(place);
    }
  }
};

// For copy_tile: x [n_rows, n_cols] in tiles of tile_rows.
template <class T>
CUtensorMap tile_map(const T* x, int64_t n_rows, int64_t n_cols, int64_t ld, int tile_rows) {
  return tile_map(x, DTypeOf<T>::value, n_rows, n_cols, ld, tile_rows);
}

struct BackwardMaps {
  CUtensorMap q, k, v, dout;

  template <class T>
  BackwardMaps(const BackwardOperands<T>& x, int query_rows, int key_rows) {
    const int n_rows = x.visibility.n_rows;
    q = tile_map(x.q, n_rows, x.Hq * x.D, x.ld_qkv, query_rows);
    k = tile_map(x.k, n_rows, x.Hkv * x.D, x.ld_qkv, key_rows);
    v = tile_map(x.v, n_rows, x.Hkv * x.D, x.ld_qkv, key_rows);
    dout = tile_map(x.dout, n_rows, x.Hq * x.D, x.ld_dout, query_rows);
  }
};

// Of block_rows rows of a head.
inline int n_blocks(int n_rows, int block_rows, int heads) {
  const int64_t n = ceil_div<int64_t>(n_rows, block_rows) * heads;
  ASSERT(n < int64_t{1} << 30);
  return static_cast<int>(n);
}

}  // namespace utrain::cuda
