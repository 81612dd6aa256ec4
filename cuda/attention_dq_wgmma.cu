// dQ of attention on Hopper, P made again from lse (Dao 2023, arXiv:2307.08691; Shah et al. 2024,
// arXiv:2407.08608):
//   P = exp(scale Q K' - lse)   dS = P o (dO V' - delta)   dQ = scale dS K
// A consumer warpgroup holds 64 queries and walks over their keys; no score leaves its registers,
// and every sum belongs to one warp and has one order. dq is overwritten. T bfloat16 or float16, D
// 64 or 128; sums in float32.      CPU twin: src/cpu/attention.h
#include "attention_wgmma.cuh"
#include "cuda_check.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

// Holds Q and dO.
template <int D>
using Walk = KeyWalk<D, D == 64 ? 3 : 2, D == 64 ? 64 : 128, 2>;

template <class T, int D>
__global__ void __launch_bounds__(Walk<D>::Team::kThreads, 1)
    attention_dq_wgmma_kernel(const __grid_constant__ BackwardOperands<T> x,
                              const __grid_constant__ BackwardMaps maps, int* next_item) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  constexpr int kQueries = Walk<D>::kQueries, kKeys = Walk<D>::kKeys, kN = kKeys / 8;
  using Team = typename Walk<D>::Team;
  const Walk<D> walk(shared);
  walk.init();
  const int warpgroup = threadIdx.x / kWarpgroup, n_rows = x.visibility.n_rows;
  if (warpgroup == 0) {
    release_registers<Team::kProducerRegisters>();
    if (threadIdx.x != 0) return;
    return walk.produce(x, maps.k, maps.v, next_item, [&](const auto& item, uint32_t full) {
      const int column = item.head * D;
      copy_tile<kQueries, D>(walk.base, maps.q, column, item.first_query, full);
      copy_tile<kQueries, D>(walk.base + Walk<D>::kQueryTile, maps.dout, column, item.first_query,
                             full);
    });
  }

  claim_registers<Team::kConsumerRegisters>();
  const auto keys_of = [&](int query) { return x.visibility.keys_of(query); };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4;
  const uint32_t q_tile = walk.base + (warpgroup - 1) * kWarpgroupRows * kPanelRowBytes,
                 dout_tile = q_tile + Walk<D>::kQueryTile,
                 out_tile = walk.base + Walk<D>::kOut + warp * 16 * D * 2;
  const float scale_log2 = x.scale * kLog2e;
  RingPlace<1> query_place;
  typename Walk<D>::Place place;
  for (;; query_place.advance()) {
    walk.queries.wait_until_full(query_place);
    const int i = *walk.item;
    if (i >= ceil_div(n_rows, kQueries) * x.Hq) return;
    const typename Walk<D>::Item item(i, x);
    const int warp_query = item.first_query + warp * 16;
    const RowsView view(item.first_query + (warpgroup - 1) * kWarpgroupRows, kWarpgroupRows, n_rows,
                        keys_of);
    if (!view.exists) {
      walk.queries.release(query_place);
      walk.skip(item.tiles.last - item.tiles.first + 1, place);
      continue;
    }
    const Interval seen = view.tiles<kKeys>();
    walk.skip(seen.first - item.tiles.first, place);

    float lse_log2[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = min(warp_query + half * 8 + lane / 4, n_rows - 1);
      lse_log2[half] = x.lse[query * x.ld_lse + item.head] * kLog2e;
      delta[half] = x.delta[query * x.ld_delta + item.head];
    }
    float dq[1][D / 8][4] = {}, s[1][kN][4], dp[1][kN][4];
    const auto start_scores = [&] {
      walk.keys.wait_until_full(place);
      registers_are_ready();
      start_nt<T, D, kQueries, kKeys>(s, q_tile, walk.key_tile(place));
      commit_products();
    };
    start_scores();
    for (int tile = seen.first;; ++tile) {
      walk.values.wait_until_full(place);
      registers_are_ready();
      start_nt<T, D, kQueries, kKeys>(dp, dout_tile, walk.value_tile(place));
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
      walk.values.release(place);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[0][n][e] *= dp[0][n][e] - delta[e / 2];
      }
      uint32_t ds[1][kN / 2][4];
      to_fragments<T>(ds, s);
      registers_are_ready(dq, ds);
      start_nn<T, D>(dq, ds, walk.key_tile(place));
      commit_products();
      const auto last_place = place;
      place.advance();
      if (tile == seen.last) {
        wait_for_products<0>(dq);
        walk.keys.release(last_place);
        break;
      }
      // The next scores keep the tensor cores busy beside what this warpgroup waits for.
      start_scores();
      wait_for_products<1>(dq);
      walk.keys.release(last_place);
    }
    walk.queries.release(query_place);
    walk.skip(item.tiles.last - seen.last, place);

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
void launch(const BackwardOperands<T>& x, const Hopper& gpu, cudaStream_t stream) {
  constexpr auto kernel = attention_dq_wgmma_kernel<T, D>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Walk<D>::kSharedBytes));
  const BackwardMaps maps(x, Walk<D>::kQueries, Walk<D>::kKeys);
  CUDA_CHECK(cudaMemsetAsync(gpu.next_item, 0, sizeof(int), stream));
  const dim3 grid(
      std::min(n_blocks(x.visibility.n_rows, Walk<D>::kQueries, x.Hq), gpu.n_multiprocessors));
  kernel<<<grid, Walk<D>::Team::kThreads, Walk<D>::kSharedBytes, stream>>>(x, maps, gpu.next_item);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

template <class T>
void attention_dq_wgmma(const BackwardOperands<T>& x, const Hopper& gpu, cudaStream_t stream) {
  ASSERT(x.D == 64 || x.D == 128);
  x.D == 64 ? launch<T, 64>(x, gpu, stream) : launch<T, 128>(x, gpu, stream);
}
template void attention_dq_wgmma(const BackwardOperands<__nv_bfloat16>&, const Hopper&,
                                 cudaStream_t);
template void attention_dq_wgmma(const BackwardOperands<__half>&, const Hopper&, cudaStream_t);

}  // namespace utrain::cuda
