// dK and dV of attention on Hopper, P made again from lse (Dao 2023, arXiv:2307.08691; Shah et al.
// 2024, arXiv:2407.08608):
//   P = exp(scale Q K' - lse)   dS = P o (dO V' - delta)   dK = scale dS' Q   dV = P' dO
// A consumer warpgroup holds 64 keys and walks over the queries of all heads of their group; no
// score leaves its registers, and every sum belongs to one warp and has one order. S and dP are
// made here and for dQ: 7 products instead of 5, no atomics. dk and dv are overwritten. T bfloat16
// or float16, D 64 or 128; sums in float32.      CPU twin: src/cpu/attention.h
#include "attention_wgmma.cuh"
#include "cuda_check.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

template <int D>
struct KeySide {
  static constexpr int kConsumers = 2, kKeys = kWarpgroupRows * kConsumers, kQueries = 64,
                       kStages = 3;
  using Team = cuda::Team<kConsumers>;
  static constexpr uint32_t kKeyTile = kTileBytes<kKeys, D>, kQueryTile = kTileBytes<kQueries, D>;
  // K, V, Q and dO by stages, rows on their way out, lse and delta by stages, barriers.
  static constexpr uint32_t kValues = kKeyTile, kQueryTiles = kValues + kKeyTile,
                            kDoutTiles = kQueryTiles + kStages * kQueryTile,
                            kOut = kDoutTiles + kStages * kQueryTile, kLse = kOut + kKeyTile,
                            kDelta = kLse + kStages * kQueries * 4,
                            kKeyRing = kDelta + kStages * kQueries * 4,
                            kQueryRing = kKeyRing + Ring<1>::kBytes,
                            kSharedBytes = kQueryRing + Ring<kStages>::kBytes;
  static_assert(kKeyTile % kTileAlignment == 0 && kQueryTile % kTileAlignment == 0);
  static_assert(kSharedBytes <= kSharedBytesOfBlock);
};

template <class T, int D>
__global__ void __launch_bounds__(KeySide<D>::Team::kThreads, 1)
    attention_dkdv_wgmma_kernel(const __grid_constant__ BackwardOperands<T> x,
                                const __grid_constant__ BackwardMaps maps) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  using Side = KeySide<D>;
  constexpr int kKeys = Side::kKeys, kQueries = Side::kQueries, kN = kQueries / 8;
  const uint32_t base = shared_address(shared);
  const Ring<1> key_ring{base + Side::kKeyRing};
  const Ring<Side::kStages> query_ring{base + Side::kQueryRing};
  if (threadIdx.x == 0) {
    key_ring.init(1, Side::Team::kConsumerWarps);
    query_ring.init(1 + 32,
                    Side::Team::kConsumerWarps);  // bytes of tiles; lse and delta by each lane
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
    release_registers<Side::Team::kProducerRegisters>();
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

  claim_registers<Side::Team::kConsumerRegisters>();
  const int warp = threadIdx.x / 32 - 4, warp_key = first_key + warp * 16;
  const uint32_t k_tile = base + (warpgroup - 1) * kWarpgroupRows * kPanelRowBytes,
                 v_tile = k_tile + Side::kValues, out_tile = base + Side::kOut + warp * 16 * D * 2;
  const RowsView view(first_key + (warpgroup - 1) * kWarpgroupRows, kWarpgroupRows, n_rows,
                      queries_of);
  const float scale_log2 = x.scale * kLog2e;
  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
  key_ring.wait_until_full({});
  const auto skip = [&](int n) {
    for (; n > 0; --n, place.advance()) {
      query_ring.wait_until_full(place);
      query_ring.release(place);
    }
  };
  float s[1][kN][4], dp[1][kN][4];
  const auto start_scores = [&] {
    query_ring.wait_until_full(place);
    registers_are_ready();
    start_nt<T, D, kKeys, kQueries>(s, k_tile,
                                    base + Side::kQueryTiles + place.stage * Side::kQueryTile);
    commit_products();
  };
  if (!view.exists) return skip(heads_per_key * (tiles.last - tiles.first + 1));
  const Interval seen = view.tiles<kQueries>();
  for (int g = 0; g < heads_per_key; ++g) {
    skip(seen.first - tiles.first);
    start_scores();
    for (int tile = seen.first;; ++tile) {
      const uint32_t q_tile = base + Side::kQueryTiles + place.stage * Side::kQueryTile,
                     dout_tile = base + Side::kDoutTiles + place.stage * Side::kQueryTile;
      // Two neighbouring queries belong to a lane.
      const float* lse = reinterpret_cast<const float*>(shared + Side::kLse) +
                         place.stage * kQueries + lane % 4 * 2;
      const float* delta = lse + Side::kStages * kQueries;
      registers_are_ready();
      start_nt<T, D, kKeys, kQueries>(dp, v_tile, dout_tile);
      commit_products();
      wait_for_products<1>(s);
      const int first_query = tile * kQueries;
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
      uint32_t p[1][kN / 2][4], ds[1][kN / 2][4];
      to_fragments<T>(p, s);
      registers_are_ready(dv, p);
      start_nn<T, D>(dv, p, dout_tile);
      commit_products();
      wait_for_products<1>(dp);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const float2 delta_n = *reinterpret_cast<const float2*>(delta + n * 8);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[0][n][e] *= dp[0][n][e] - (e % 2 == 0 ? delta_n.x : delta_n.y);
      }
      to_fragments<T>(ds, s);
      registers_are_ready(dk, ds);
      start_nn<T, D>(dk, ds, q_tile);
      commit_products();
      const RingPlace<Side::kStages> last_place = place;
      place.advance();
      if (tile == seen.last) {
        wait_for_products<0>(dk, dv);
        query_ring.release(last_place);
        break;
      }
      // The next scores keep the tensor cores busy beside what this warpgroup waits for.
      start_scores();
      wait_for_products<1>(dk, dv);
      query_ring.release(last_place);
    }
    skip(tiles.last - seen.last);
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
void launch(const BackwardOperands<T>& x, cudaStream_t stream) {
  using Side = KeySide<D>;
  constexpr auto kernel = attention_dkdv_wgmma_kernel<T, D>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Side::kSharedBytes));
  const BackwardMaps maps(x, Side::kQueries, Side::kKeys);
  const dim3 grid(n_blocks(x.visibility.n_rows, Side::kKeys, x.Hkv));
  kernel<<<grid, Side::Team::kThreads, Side::kSharedBytes, stream>>>(x, maps);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

template <class T>
void attention_dkdv_wgmma(const BackwardOperands<T>& x, cudaStream_t stream) {
  ASSERT(x.D == 64 || x.D == 128);
  x.D == 64 ? launch<T, 64>(x, stream) : launch<T, 128>(x, stream);
}
template void attention_dkdv_wgmma(const BackwardOperands<__nv_bfloat16>&, cudaStream_t);
template void attention_dkdv_wgmma(const BackwardOperands<__half>&, cudaStream_t);

}  // namespace utrain::cuda
