// Attention forward on Hopper: O = softmax(scale Q K') V, lse = log of the softmax's denominator.
//   Shah et al. 2024, arXiv:2407.08608: a consumer warpgroup holds 64 queries of a head; while it
//   makes weights of one tile's scores, the tensor cores work on the other warpgroup's products and
//   on this one's last tile times V. T bfloat16 or float16, D 64 or 128; sums, softmax and lse in
//   float32.      CPU twin: src/cpu/attention.h
#include "attention_wgmma.cuh"
#include "cuda_check.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

// Holds Q.
template <int D>
using Walk = KeyWalk<D, D == 64 ? 3 : 2, 128, 1>;

struct ForwardMaps {
  CUtensorMap q, k, v;
};

template <class T, int D>
__global__ void __launch_bounds__(Walk<D>::Team::kThreads, 1)
    attention_forward_wgmma_kernel(const __grid_constant__ ForwardOperands<T> x,
                                   const __grid_constant__ ForwardMaps maps, int* next_item) {
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
      copy_tile<kQueries, D>(walk.base, maps.q, item.head * D, item.first_query, full);
    });
  }

  claim_registers<Team::kConsumerRegisters>();
  const auto keys_of = [&](int query) { return x.visibility.keys_of(query); };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4;
  const uint32_t q_tile = walk.base + (warpgroup - 1) * kWarpgroupRows * kPanelRowBytes,
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

    Softmax<1, kN> softmax;
    float o[1][D / 8][4] = {}, s[1][kN][4];
    uint32_t p[1][kN / 2][4];
    const auto weigh = [&](int first_key) {
      if (!view.all_of(first_key, first_key + kKeys - 1))
        hide(s, warp_query, first_key, n_rows, keys_of);
      softmax.update(s, scale_log2);
    };
    const auto start_scores = [&] {
      walk.keys.wait_until_full(place);
      registers_are_ready();
      start_nt<T, D, kQueries, kKeys>(s, q_tile, walk.key_tile(place));
      commit_products();
    };
    const auto start_sums = [&](const auto& at) {
      walk.values.wait_until_full(at);
      registers_are_ready(o, p);
      start_nn<T, D>(o, p, walk.value_tile(at));
      commit_products();
    };
    start_scores();
    wait_for_products<0>(s);
    walk.keys.release(place);
    weigh(seen.first * kKeys);
    to_fragments<T>(p, s);
    for (int tile = seen.first + 1; tile <= seen.last; ++tile) {
      const auto last_place = place;
      place.advance();
      start_scores();
      start_sums(last_place);
      wait_for_products<1>(s);
      walk.keys.release(place);
      weigh(tile * kKeys);
      wait_for_products<0>(o);
      walk.values.release(last_place);
      softmax.shrink_sums(o);
      to_fragments<T>(p, s);
    }
    walk.queries.release(query_place);
    start_sums(place);
    wait_for_products<0>(o);
    walk.values.release(place);
    place.advance();
    walk.skip(item.tiles.last - seen.last, place);

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax.sum[0][half]), inverse = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[0][n][half * 2] *= inverse;
        o[0][n][half * 2 + 1] *= inverse;
      }
      const int query = warp_query + half * 8 + lane / 4;
      if (lane % 4 == 0 && query < n_rows) {
        x.lse[int64_t{query} * x.ld_lse + item.head] =
            softmax.largest[0][half] * x.scale + logf(sum);
      }
    }
    store_rows<T, D>(x.out + item.head * D, x.ld_out, warp_query, n_rows, o, out_tile);
    __syncwarp();
  }
}

template <class T, int D>
void launch(const ForwardOperands<T>& x, const Hopper& gpu, cudaStream_t stream) {
  constexpr auto kernel = attention_forward_wgmma_kernel<T, D>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Walk<D>::kSharedBytes));
  const int n_rows = x.visibility.n_rows;
  const ForwardMaps maps{tile_map(x.q, n_rows, x.Hq * D, x.ld_q, Walk<D>::kQueries),
                         tile_map(x.k, n_rows, x.Hkv * D, x.ld_k, Walk<D>::kKeys),
                         tile_map(x.v, n_rows, x.Hkv * D, x.ld_v, Walk<D>::kKeys)};
  CUDA_CHECK(cudaMemsetAsync(gpu.next_item, 0, sizeof(int), stream));
  const dim3 grid(std::min(n_blocks(n_rows, Walk<D>::kQueries, x.Hq), gpu.n_multiprocessors));
  kernel<<<grid, Walk<D>::Team::kThreads, Walk<D>::kSharedBytes, stream>>>(x, maps, gpu.next_item);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

template <class T>
void attention_forward_wgmma(const ForwardOperands<T>& x, const Hopper& gpu, cudaStream_t stream) {
  ASSERT(x.D == 64 || x.D == 128);
  x.D == 64 ? launch<T, 64>(x, gpu, stream) : launch<T, 128>(x, gpu, stream);
}
template void attention_forward_wgmma(const ForwardOperands<__nv_bfloat16>&, const Hopper&,
                                      cudaStream_t);
template void attention_forward_wgmma(const ForwardOperands<__half>&, const Hopper&, cudaStream_t);

}  // namespace utrain::cuda
