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

template <int D>
struct Forward {
  static constexpr int kConsumers = D == 64 ? 3 : 2, kThreads = kWarpgroup * (1 + kConsumers);
  static constexpr int kRegisters = D == 64 ? 160 : 240;
  static constexpr int kQueries = kWarpgroupRows * kConsumers, kKeys = 128, kStages = 2;
  static constexpr uint32_t kQueryTile = kTileBytes<kQueries, D>, kKeyTile = kTileBytes<kKeys, D>;
  // Q, then K and V by stages, then rows on their way out, then barriers, then the item.
  static constexpr uint32_t kKeyTiles = kQueryTile, kValueTiles = kKeyTiles + kStages * kKeyTile,
                            kOut = kValueTiles + kStages * kKeyTile,
                            kQueryRing = kOut + kQueryTile,
                            kKeyRing = kQueryRing + Ring<1>::kBytes,
                            kValueRing = kKeyRing + Ring<kStages>::kBytes,
                            kItem = kValueRing + Ring<kStages>::kBytes, kSharedBytes = kItem + 8;
};

struct ForwardMaps {
  CUtensorMap q, k, v;
};

template <class T, int D>
__global__ void __launch_bounds__(Forward<D>::kThreads, 1)
    attention_forward_wgmma_kernel(const __grid_constant__ ForwardOperands<T> x,
                                   const __grid_constant__ ForwardMaps maps, int* next_item) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  using F = Forward<D>;
  constexpr int kQueries = F::kQueries, kKeys = F::kKeys, kN = kKeys / 8;
  const uint32_t base = shared_address(shared);
  const Ring<1> query_ring{base + F::kQueryRing};
  const Ring<F::kStages> key_ring{base + F::kKeyRing}, value_ring{base + F::kValueRing};
  volatile int* item_of_block = reinterpret_cast<int*>(shared + F::kItem);
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = F::kConsumers * 4;
    query_ring.init(1, kConsumerWarps);
    key_ring.init(1, kConsumerWarps);
    value_ring.init(1, kConsumerWarps);
    barriers_are_ready();
  }
  __syncthreads();

  const int n_rows = x.visibility.n_rows, n_items = ceil_div(n_rows, kQueries) * x.Hq;
  const int heads_per_key = x.Hq / x.Hkv;
  RingPlace<1> query_place;
  RingPlace<F::kStages> place;
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    release_registers<24>();
    if (threadIdx.x != 0) return;
    for (int i = blockIdx.x;; query_place.advance()) {
      query_ring.wait_until_empty(query_place);
      *item_of_block = i;
      if (i >= n_items) return arrive(query_ring.full(query_place));
      const QueryItem<kQueries, kKeys> item(i, x);
      arrive_and_expect(query_ring.full(query_place), F::kQueryTile);
      copy_tile<kQueries, D>(base, maps.q, item.head * D, item.first_query,
                             query_ring.full(query_place));
      i = gridDim.x + atomicAdd(next_item, 1);
      const int column = item.head / heads_per_key * D;
      for (int tile = item.tiles.first; tile <= item.tiles.last; ++tile, place.advance()) {
        const uint32_t offset = place.stage * F::kKeyTile;
        key_ring.wait_until_empty(place);
        arrive_and_expect(key_ring.full(place), F::kKeyTile);
        copy_tile<kKeys, D>(base + F::kKeyTiles + offset, maps.k, column, tile * kKeys,
                            key_ring.full(place));
        value_ring.wait_until_empty(place);
        arrive_and_expect(value_ring.full(place), F::kKeyTile);
        copy_tile<kKeys, D>(base + F::kValueTiles + offset, maps.v, column, tile * kKeys,
                            value_ring.full(place));
      }
    }
  }

  claim_registers<F::kRegisters>();
  const auto keys_of = [&](int query) { return x.visibility.keys_of(query); };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4;
  const uint32_t q_tile = base + (warpgroup - 1) * kWarpgroupRows * kPanelRowBytes,
                 out_tile = base + F::kOut + warp * 16 * D * 2;
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

    Softmax<1, kN> softmax;
    float o[1][D / 8][4] = {}, s[1][kN][4];
    uint32_t p[1][kN / 2][4];
    const auto weigh = [&](int first_key) {
      if (!view.all_of(first_key, first_key + kKeys - 1))
        hide(s, warp_query, first_key, n_rows, keys_of);
      softmax.update(s, scale_log2);
    };
    const auto start_scores = [&] {
      key_ring.wait_until_full(place);
      registers_are_ready();
      start_nt<T, D, kQueries, kKeys>(s, q_tile,
                                      base + F::kKeyTiles + place.stage * F::kKeyTile);
      commit_products();
    };
    const auto start_sums = [&](const RingPlace<F::kStages>& at) {
      value_ring.wait_until_full(at);
      registers_are_ready();
      start_nn<T, D>(o, p, base + F::kValueTiles + at.stage * F::kKeyTile);
      commit_products();
    };
    start_scores();
    wait_for_products<0>(s);
    key_ring.release(place);
    weigh(seen.first * kKeys);
    to_fragments<T>(p, s);
    for (int tile = seen.first + 1; tile <= seen.last; ++tile) {
      const RingPlace<F::kStages> last_place = place;
      place.advance();
      start_scores();
      start_sums(last_place);
      wait_for_products<1>(s);
      key_ring.release(place);
      weigh(tile * kKeys);
      wait_for_products<0>(o);
      value_ring.release(last_place);
      softmax.shrink_sums(o);
      to_fragments<T>(p, s);
    }
    query_ring.release(query_place);
    start_sums(place);
    wait_for_products<0>(o);
    value_ring.release(place);
    place.advance();
    skip(item.tiles.last - seen.last);

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
  using F = Forward<D>;
  const auto kernel = attention_forward_wgmma_kernel<T, D>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  F::kSharedBytes));
  const int n_rows = x.visibility.n_rows;
  const ForwardMaps maps{tile_map(x.q, n_rows, x.Hq * D, x.ld_q, F::kQueries),
                         tile_map(x.k, n_rows, x.Hkv * D, x.ld_k, F::kKeys),
                         tile_map(x.v, n_rows, x.Hkv * D, x.ld_v, F::kKeys)};
  const int64_t n_items = ceil_div<int64_t>(n_rows, F::kQueries) * x.Hq;
  ASSERT(n_items < int64_t{1} << 30);
  CUDA_CHECK(cudaMemsetAsync(gpu.next_item, 0, sizeof(int), stream));
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(n_items, gpu.n_multiprocessors)));
  kernel<<<grid, F::kThreads, F::kSharedBytes, stream>>>(x, maps, gpu.next_item);
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
