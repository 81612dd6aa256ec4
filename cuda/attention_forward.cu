// Attention forward on tensor cores: O = softmax(scale Q K') V, lse = log of the softmax's
// denominator.
//   Dao 2023, arXiv:2307.08691: one block holds 128 queries of a head and walks over their keys, 64
//   at a time, with a running maximum; a warp holds 32 queries, whose scores become the next
//   product's operand without leaving registers. While a tile of keys and values is multiplied, the
//   next one is on its way to shared memory. T bfloat16 or float16, D 64 or 128; sums, softmax and
//   lse in float32.      CPU twin: src/cpu/attention.h
#include "attention.cuh"
#include "cuda_check.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 128, kQueries = 128, kKeys = 64;
constexpr int kM = 2, kN = kKeys / 8;  // a warp's scores: 16 kM queries, 8 kN keys

template <int D>
constexpr int kSharedBytes = (kQueries + 2 * 2 * kKeys) * D * 2;

template <class T, int D>
__global__ void __launch_bounds__(kThreads, D == 64 ? 3 : 2)
    attention_forward_kernel(const __grid_constant__ ForwardOperands<T> x) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr uint32_t kKeyTile = kKeys * D * 2;
  const uint32_t q_tile = shared_address(shared), k_tiles = q_tile + kQueries * D * 2,
                 v_tiles = k_tiles + 2 * kKeyTile;

  // Late queries see more keys: they go first.
  const int head = blockIdx.x % x.Hq, key_head = head / (x.Hq / x.Hkv);
  const int n_rows = x.visibility.n_rows;
  const int first_query = (gridDim.x / x.Hq - 1 - blockIdx.x / x.Hq) * kQueries;
  const auto keys_of = [&](int query) { return x.visibility.keys_of(query); };
  const int first_tile = keys_of(first_query).first / kKeys;
  const int last_tile = (min(first_query + kQueries, n_rows) - 1) / kKeys;
  const int warp = threadIdx.x / 32, warp_query = first_query + warp * kM * 16;
  const RowsView view(warp_query, kM * 16, n_rows, keys_of);

  const T* k = x.k + key_head * D;
  const T* v = x.v + key_head * D;
  const auto load_keys = [&](int tile) {
    load_tile<kKeys, D, kThreads>(k_tiles + tile % 2 * kKeyTile, k, x.ld_k, tile * kKeys, n_rows);
    load_tile<kKeys, D, kThreads>(v_tiles + tile % 2 * kKeyTile, v, x.ld_v, tile * kKeys, n_rows);
  };
  load_tile<kQueries, D, kThreads>(q_tile, x.q + head * D, x.ld_q, first_query, n_rows);
  load_keys(first_tile);

  const uint32_t warp_tile = q_tile + warp * kM * 16 * D * 2;
  const uint32_t q_place = warp_tile + place_of_a<D>();
  const float scale_log2 = x.scale * kLog2e;
  Softmax<kM, kN> softmax;
  float o[kM][D / 8][4] = {};
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    // The tile has come, and no warp reads the one before any more: its place is free.
    wait_for_copies();
    __syncthreads();
    if (tile < last_tile) load_keys(tile + 1);
    const int first_key = tile * kKeys;
    if (!view.some_of(first_key, first_key + kKeys - 1)) continue;

    float s[kM][kN][4];
    multiply_nt<T, D>(s, q_place, k_tiles + tile % 2 * kKeyTile + place_of_b<D>());
    if (!view.all_of(first_key, first_key + kKeys - 1))
      hide(s, warp_query, first_key, n_rows, keys_of);
    softmax.update(s, scale_log2);
    softmax.shrink_sums(o);
    uint32_t p[kM][kN / 2][4];
    to_fragments<T>(p, s);
    multiply_nn<T, D>(o, p, v_tiles + tile % 2 * kKeyTile + place_of_a<D>());
  }

  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax.sum[m][half]), inverse = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[m][n][half * 2] *= inverse;
        o[m][n][half * 2 + 1] *= inverse;
      }
      const int query = warp_query + m * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && query < n_rows) {
        x.lse[int64_t{query} * x.ld_lse + head] = softmax.largest[m][half] * x.scale + logf(sum);
      }
    }
  }
  // Only this warp reads its rows of Q, and it has read them.
  __syncwarp();
  store_rows<T, D>(x.out + head * D, x.ld_out, warp_query, n_rows, o, warp_tile);
}

template <class T, int D>
void launch(const ForwardOperands<T>& x, cudaStream_t stream) {
  const auto kernel = attention_forward_kernel<T, D>;
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<D>));
  const int64_t n_blocks = ceil_div<int64_t>(x.visibility.n_rows, kQueries) * x.Hq;
  ASSERT(n_blocks < int64_t{1} << 31);
  const dim3 grid(static_cast<unsigned>(n_blocks));
  kernel<<<grid, kThreads, kSharedBytes<D>, stream>>>(x);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

template <class T>
void attention_forward_mma(const ForwardOperands<T>& x, cudaStream_t stream) {
  ASSERT(x.D == 64 || x.D == 128);
  x.D == 64 ? launch<T, 64>(x, stream) : launch<T, 128>(x, stream);
}
template void attention_forward_mma(const ForwardOperands<__nv_bfloat16>&, cudaStream_t);
template void attention_forward_mma(const ForwardOperands<__half>&, cudaStream_t);

}  // namespace utrain::cuda
