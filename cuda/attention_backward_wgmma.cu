// Attention backward on Hopper, P made again from lse (Dao 2023, arXiv:2307.08691; Shah et al. 2024,
// arXiv:2407.08608):
//   P = exp(scale Q K' - lse)   dS = P o (dO V' - delta)
//   dQ = scale dS K   dK = scale dS' Q   dV = P' dO
// Two kernels, so that every sum belongs to one warp and has one order: dQ by blocks of queries
// that walk over keys, dK and dV by blocks of keys that walk over the queries of all heads of their
// group. S and dP are made in both: 7 products instead of 5, no atomics, and no score leaves its
// registers.
//   T bfloat16 or float16, D 64 or 128; sums in float32.      CPU twin: src/cpu/attention.h
#include "attention_wgmma.cuh"
#include "cuda_check.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kConsumers = 2, kConsumerWarps = kConsumers * 4,
              kThreads = kWarpgroup * (1 + kConsumers);
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

template <int D>
struct QuerySide {
  static constexpr int kQueries = kWarpgroupRows * kConsumers, kKeys = 128, kStages = 2;
  static constexpr uint32_t kQueryTile = kTileBytes<kQueries, D>, kKeyTile = kTileBytes<kKeys, D>;
  // Q, dO, K and V by stages, rows on their way out, barriers, the item.
  static constexpr uint32_t kDout = kQueryTile, kKeyTiles = kDout + kQueryTile,
                            kValueTiles = kKeyTiles + kStages * kKeyTile,
                            kOut = kValueTiles + kStages * kKeyTile,
                            kQueryRing = kOut + kQueryTile,
                            kKeyRing = kQueryRing + Ring<1>::kBytes,
                            kValueRing = kKeyRing + Ring<kStages>::kBytes,
                            kItem = kValueRing + Ring<kStages>::kBytes, kSharedBytes = kItem + 8;
};

template <int D>
struct KeySide {
  static constexpr int kKeys = kWarpgroupRows * kConsumers, kQueries = 64, kStages = 3;
  static constexpr uint32_t kKeyTile = kTileBytes<kKeys, D>, kQueryTile = kTileBytes<kQueries, D>;
  // K, V, Q and dO by stages, rows on their way out, lse and delta by stages, barriers.
  static constexpr uint32_t kValues = kKeyTile, kQueryTiles = kValues + kKeyTile,
                            kDoutTiles = kQueryTiles + kStages * kQueryTile,
                            kOut = kDoutTiles + kStages * kQueryTile, kLse = kOut + kKeyTile,
                            kDelta = kLse + kStages * kQueries * 4,
                            kKeyRing = kDelta + kStages * kQueries * 4,
                            kQueryRing = kKeyRing + Ring<1>::kBytes,
                            kSharedBytes = kQueryRing + Ring<kStages>::kBytes;
};

struct BackwardMaps {
  CUtensorMap q, k, v, dout;
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    attention_dq_wgmma_kernel(const __grid_constant__ BackwardOperands<T> x,
                              const __grid_constant__ BackwardMaps maps, int* next_item) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  using Side = QuerySide<D>;
  constexpr int kQueries = Side::kQueries, kKeys = Side::kKeys, kN = kKeys / 8;
  const uint32_t base = shared_address(shared);
  const Ring<1> query_ring{base + Side::kQueryRing};
  const Ring<Side::kStages> key_ring{base + Side::kKeyRing}, value_ring{base + Side::kValueRing};
  volatile int* item_of_block = reinterpret_cast<int*>(shared + Side::kItem);
  if (threadIdx.x == 0) {
    query_ring.init(1, kConsumerWarps);
    key_ring.init(1, kConsumerWarps);
    value_ring.init(1, kConsumerWarps);
    barriers_are_ready();
  }
  __syncthreads();

  const int n_rows = x.visibility.n_rows, n_items = ceil_div(n_rows, kQueries) * x.Hq;
  const int heads_per_key = x.Hq / x.Hkv;
  RingPlace<1> query_place;
  RingPlace<Side::kStages> place;
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    release_registers<kProducerRegisters>();
    if (threadIdx.x != 0) return;
    for (int i = blockIdx.x;; query_place.advance()) {
      query_ring.wait_until_empty(query_place);
      *item_of_block = i;
      if (i >= n_items) return arrive(query_ring.full(query_place));
      const QueryItem<kQueries, kKeys> item(i, x);
      arrive_and_expect(query_ring.full(query_place), 2 * Side::kQueryTile);
      copy_tile<kQueries, D>(base, maps.q, item.head * D, item.first_query,
                             query_ring.full(query_place));
      copy_tile<kQueries, D>(base + Side::kDout, maps.dout, item.head * D, item.first_query,
                             query_ring.full(query_place));
      i = gridDim.x + atomicAdd(next_item, 1);
      const int column = item.head / heads_per_key * D;
      for (int tile = item.tiles.first; tile <= item.tiles.last; ++tile, place.advance()) {
        const uint32_t offset = place.stage * Side::kKeyTile;
        key_ring.wait_until_empty(place);
        arrive_and_expect(key_ring.full(place), Side::kKeyTile);
        copy_tile<kKeys, D>(base + Side::kKeyTiles + offset, maps.k, column, tile * kKeys,
                            key_ring.full(place));
        value_ring.wait_until_empty(place);
        arrive_and_expect(value_ring.full(place), Side::kKeyTile);
        copy_tile<kKeys, D>(base + Side::kValueTiles + offset, maps.v, column, tile * kKeys,
                            value_ring.full(place));
      }
    }
  }

  claim_registers<kConsumerRegisters>();
  const auto keys_of = [&](int query) { return x.visibility.keys_of(query); };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4;
  const uint32_t q_tile = base + (warpgroup - 1) * kWarpgroupRows * kPanelRowBytes,
                 dout_tile = q_tile + Side::kDout, out_tile = base + Side::kOut + warp * 16 * D * 2;
  const float scale_log2 = x.scale * kLog2e;
  const auto skip = [&](int n) {
    for (; n > 0; --n, place.advance()) {
      key_ring.wait_until_full(place);
      key_ring.release(place);
      value_ring.wait_until_full(place);
      value_ring.release(place);
    }
  };
  for (;; query_place.advance()) {
    query_ring.wait_until_full(query_place);
    const int i = *item_of_block;
    if (i >= n_items) return;
    const QueryItem<kQueries, kKeys> item(i, x);
    const int group_query = item.first_query + (warpgroup - 1) * kWarpgroupRows;
    const int warp_query = item.first_query + warp * 16;
    const WarpView view(group_query, kWarpgroupRows, n_rows, keys_of);
    if (!view.exists) {
      query_ring.release(query_place);
      skip(item.tiles.last - item.tiles.first + 1);
      continue;
    }
    const Interval seen = view.tiles<kKeys>();
    skip(seen.first - item.tiles.first);

    float lse_log2[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = min(warp_query + half * 8 + lane / 4, n_rows - 1);
      lse_log2[half] = x.lse[query * x.ld_lse + item.head] * kLog2e;
      delta[half] = x.delta[query * x.ld_delta + item.head];
    }
    float dq[1][D / 8][4] = {}, s[1][kN][4], dp[1][kN][4];
    const auto start_scores = [&] {
      key_ring.wait_until_full(place);
      registers_are_ready();
      start_nt<T, D, kQueries, kKeys>(s, q_tile,
                                      base + Side::kKeyTiles + place.stage * Side::kKeyTile);
      commit_products();
    };
    start_scores();
    for (int tile = seen.first;; ++tile) {
      value_ring.wait_until_full(place);
      registers_are_ready();
      start_nt<T, D, kQueries, kKeys>(dp, dout_tile,
                                      base + Side::kValueTiles + place.stage * Side::kKeyTile);
      commit_products();
      wait_for_products<1>(s);
      const int first_key = tile * kKeys;
      if (!view.all_of(first_key, first_key + kKeys - 1))
        hide(s, warp_query, first_key, n_rows, keys_of);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale_log2, -lse_log2[e / 2]));
      }
      wait_for_products<0>(dp);
      value_ring.release(place);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[0][n][e] *= dp[0][n][e] - delta[e / 2];
      }
      uint32_t ds[1][kN / 2][4];
      to_fragments<T>(ds, s);
      registers_are_ready();
      start_nn<T, D>(dq, ds, base + Side::kKeyTiles + place.stage * Side::kKeyTile);
      commit_products();
      const RingPlace<Side::kStages> last_place = place;
      place.advance();
      if (tile == seen.last) {
        wait_for_products<0>(dq);
        key_ring.release(last_place);
        break;
      }
      // The next scores keep the tensor cores busy beside what this warpgroup waits for.
      start_scores();
      wait_for_products<1>(dq);
      key_ring.release(last_place);
    }
    query_ring.release(query_place);
    skip(item.tiles.last - seen.last);

#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[0][n][e] *= x.scale;
    }
    store_rows<T, D>(x.dq + item.head * D, x.ld_dqkv, warp_query, n_rows, dq, out_tile);
    __syncwarp();
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    attention_dkdv_wgmma_kernel(const __grid_constant__ BackwardOperands<T> x,
                                const __grid_constant__ BackwardMaps maps) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  using Side = KeySide<D>;
  constexpr int kKeys = Side::kKeys, kQueries = Side::kQueries, kN = kQueries / 8;
  const uint32_t base = shared_address(shared);
  const Ring<1> key_ring{base + Side::kKeyRing};
  const Ring<Side::kStages> query_ring{base + Side::kQueryRing};
  if (threadIdx.x == 0) {
    key_ring.init(1, kConsumerWarps);
    query_ring.init(1 + 32, kConsumerWarps);  // bytes of tiles; lse and delta by each lane
    barriers_are_ready();
  }
  __syncthreads();

  // Early keys are seen by more queries: they go first.
  const int key_head = blockIdx.x % x.Hkv, heads_per_key = x.Hq / x.Hkv;
  const int n_rows = x.visibility.n_rows;
  const int first_key = blockIdx.x / x.Hkv * kKeys, last_key = min(first_key + kKeys, n_rows) - 1;
  const auto queries_of = [&](int key) { return x.visibility.queries_of(key); };
  const Interval tiles{first_key / kQueries, queries_of(last_key).last / kQueries};
  const int lane = threadIdx.x % 32, warpgroup = threadIdx.x / kWarpgroup;
  RingPlace<Side::kStages> place;
  if (warpgroup == 0) {
    release_registers<kProducerRegisters>();
    if (threadIdx.x >= 32) return;
    if (lane == 0) {
      const uint32_t full = key_ring.full({});
      arrive_and_expect(full, 2 * Side::kKeyTile);
      copy_tile<kKeys, D>(base, maps.k, key_head * D, first_key, full);
      copy_tile<kKeys, D>(base + Side::kValues, maps.v, key_head * D, first_key, full);
    }
    for (int g = 0; g < heads_per_key; ++g) {
      const int head = key_head * heads_per_key + g;
      for (int tile = tiles.first; tile <= tiles.last; ++tile, place.advance()) {
        query_ring.wait_until_empty(place);
        const uint32_t full = query_ring.full(place), offset = place.stage * Side::kQueryTile;
        if (lane == 0) {
          arrive_and_expect(full, 2 * Side::kQueryTile);
          copy_tile<kQueries, D>(base + Side::kQueryTiles + offset, maps.q, head * D,
                                 tile * kQueries, full);
          copy_tile<kQueries, D>(base + Side::kDoutTiles + offset, maps.dout, head * D,
                                 tile * kQueries, full);
        }
#pragma unroll
        for (int r = lane; r < kQueries; r += 32) {
          const int64_t query = tile * kQueries + r;
          const bool valid = query < n_rows;
          const uint32_t to = base + (place.stage * kQueries + r) * 4;
          copy_async_4(to + Side::kLse, valid ? x.lse + query * x.ld_lse + head : x.lse, valid);
          copy_async_4(to + Side::kDelta, valid ? x.delta + query * x.ld_delta + head : x.delta,
                       valid);
        }
        arrive_after_copies(full);
      }
    }
    return;
  }

  claim_registers<kConsumerRegisters>();
  const int warp = threadIdx.x / 32 - 4, warp_key = first_key + warp * 16;
  const uint32_t k_tile = base + (warpgroup - 1) * kWarpgroupRows * kPanelRowBytes,
                 v_tile = k_tile + Side::kValues, out_tile = base + Side::kOut + warp * 16 * D * 2;
  const WarpView view(first_key + (warpgroup - 1) * kWarpgroupRows, kWarpgroupRows, n_rows,
                      queries_of);
  const float scale_log2 = x.scale * kLog2e;
  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
  key_ring.wait_until_full({});
  for (int g = 0; g < heads_per_key; ++g) {
    for (int tile = tiles.first; tile <= tiles.last; ++tile, place.advance()) {
      query_ring.wait_until_full(place);
      const int first_query = tile * kQueries;
      if (!view.some_of(first_query, first_query + kQueries - 1)) {
        query_ring.release(place);
        continue;
      }
      const uint32_t q_tile = base + Side::kQueryTiles + place.stage * Side::kQueryTile,
                     dout_tile = base + Side::kDoutTiles + place.stage * Side::kQueryTile;
      // Two neighbouring queries belong to a lane.
      const float* lse =
          reinterpret_cast<const float*>(shared + Side::kLse) + place.stage * kQueries + lane % 4 * 2;
      const float* delta = lse + Side::kStages * kQueries;

      float s[1][kN][4], dp[1][kN][4];
      uint32_t p[1][kN / 2][4], ds[1][kN / 2][4];
      registers_are_ready();
      start_nt<T, D, kKeys, kQueries>(s, k_tile, q_tile);
      commit_products();
      start_nt<T, D, kKeys, kQueries>(dp, v_tile, dout_tile);
      commit_products();
      wait_for_products<1>(s);
      if (!view.all_of(first_query, first_query + kQueries - 1))
        hide(s, warp_key, first_query, n_rows, queries_of);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const float2 lse_n = *reinterpret_cast<const float2*>(lse + n * 8);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float lse_log2 = (e % 2 == 0 ? lse_n.x : lse_n.y) * kLog2e;
          s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale_log2, -lse_log2));
        }
      }
      to_fragments<T>(p, s);
      registers_are_ready();
      start_nn<T, D>(dv, p, dout_tile);
      commit_products();
      wait_for_products<1>(dp);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const float2 delta_n = *reinterpret_cast<const float2*>(delta + n * 8);
#pragma unroll
        for (int e = 0; e < 4; ++e) s[0][n][e] *= dp[0][n][e] - (e % 2 == 0 ? delta_n.x : delta_n.y);
      }
      to_fragments<T>(ds, s);
      registers_are_ready();
      start_nn<T, D>(dk, ds, q_tile);
      commit_products();
      wait_for_products<0>(dk, dv);
      query_ring.release(place);
    }
  }

#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) dk[0][n][e] *= x.scale;
  }
  store_rows<T, D>(x.dk + key_head * D, x.ld_dqkv, warp_key, n_rows, dk, out_tile);
  __syncwarp();
  store_rows<T, D>(x.dv + key_head * D, x.ld_dqkv, warp_key, n_rows, dv, out_tile);
}

template <class T, int D>
void launch(const BackwardOperands<T>& x, const Hopper& gpu, cudaStream_t stream) {
  using Queries = QuerySide<D>;
  using Keys = KeySide<D>;
  const int n_rows = x.visibility.n_rows;
  const auto maps = [&](int query_rows, int key_rows) {
    return BackwardMaps{tile_map(x.q, n_rows, x.Hq * D, x.ld_qkv, query_rows),
                        tile_map(x.k, n_rows, x.Hkv * D, x.ld_qkv, key_rows),
                        tile_map(x.v, n_rows, x.Hkv * D, x.ld_qkv, key_rows),
                        tile_map(x.dout, n_rows, x.Hq * D, x.ld_dout, query_rows)};
  };
  const auto blocks_of = [&](int rows, int heads) {
    const int64_t n = ceil_div<int64_t>(n_rows, rows) * heads;
    ASSERT(n < int64_t{1} << 30);
    return static_cast<int>(n);
  };
  const auto dq = attention_dq_wgmma_kernel<T, D>;
  const auto dkdv = attention_dkdv_wgmma_kernel<T, D>;
  CUDA_CHECK(cudaFuncSetAttribute(dq, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Queries::kSharedBytes));
  CUDA_CHECK(cudaFuncSetAttribute(dkdv, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Keys::kSharedBytes));
  CUDA_CHECK(cudaMemsetAsync(gpu.next_item, 0, sizeof(int), stream));
  const dim3 dq_grid(std::min(blocks_of(Queries::kQueries, x.Hq), gpu.n_multiprocessors));
  dq<<<dq_grid, kThreads, Queries::kSharedBytes, stream>>>(
      x, maps(Queries::kQueries, Queries::kKeys), gpu.next_item);
  CUDA_LAUNCH_CHECK();
  const dim3 dkdv_grid(blocks_of(Keys::kKeys, x.Hkv));
  dkdv<<<dkdv_grid, kThreads, Keys::kSharedBytes, stream>>>(x, maps(Keys::kQueries, Keys::kKeys));
  CUDA_LAUNCH_CHECK();
}

}  // namespace

template <class T>
void attention_backward_wgmma(const BackwardOperands<T>& x, const Hopper& gpu,
                              cudaStream_t stream) {
  ASSERT(x.D == 64 || x.D == 128);
  x.D == 64 ? launch<T, 64>(x, gpu, stream) : launch<T, 128>(x, gpu, stream);
}
template void attention_backward_wgmma(const BackwardOperands<__nv_bfloat16>&, const Hopper&,
                                       cudaStream_t);
template void attention_backward_wgmma(const BackwardOperands<__half>&, const Hopper&,
                                       cudaStream_t);

}  // namespace utrain::cuda
