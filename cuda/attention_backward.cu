// Attention backward on tensor cores, P made again from lse (Dao 2023, arXiv:2307.08691):
//   P = exp(scale Q K' - lse)   dS = P o (dO V' - delta)
//   dQ = scale dS K   dK = scale dS' Q   dV = P' dO
// Two kernels, so that every sum belongs to one warp and has one order: dQ by blocks of queries
// that walk over keys, dK and dV by blocks of keys that walk over the queries of all heads of their
// group. S and dP are made in both: 7 products instead of 5, no atomics. In both, a warp's scores
// become the next product's operand without leaving registers.
//   T bfloat16 or float16, D 64 or 128; sums in float32.      CPU twin: src/cpu/attention.h
#include "attention.cuh"
#include "cuda_check.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

// Tiles as large as the registers of a warp's sums allow.
template <int D>
struct QuerySide {
  static constexpr int kM = 2, kQueries = kWarps * kM * 16, kKeys = D == 64 ? 64 : 32;
  static constexpr int kSharedBytes = (2 * kQueries + 2 * 2 * kKeys) * D * 2;
};
template <int D>
struct KeySide {
  static constexpr int kM = D == 64 ? 2 : 1, kKeys = kWarps * kM * 16, kQueries = D == 64 ? 32 : 64;
  // Q, dO, lse and delta of a tile of queries.
  static constexpr int kTileBytes = kQueries * D * 2,
                       kStageBytes = 2 * kTileBytes + 2 * kQueries * 4;
  static constexpr int kSharedBytes = 2 * kKeys * D * 2 + 2 * kStageBytes;
  static_assert(kStageBytes % 256 == 0);
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 2)
    attention_dq_kernel(const __grid_constant__ BackwardOperands<T> x) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using Side = QuerySide<D>;
  constexpr int kM = Side::kM, kQueries = Side::kQueries, kKeys = Side::kKeys, kN = kKeys / 8;
  constexpr uint32_t kQueryTile = kQueries * D * 2, kKeyTile = kKeys * D * 2;
  const uint32_t q_tile = shared_address(shared), dout_tile = q_tile + kQueryTile;
  const uint32_t k_tiles = dout_tile + kQueryTile, v_tiles = k_tiles + 2 * kKeyTile;

  // Late queries see more keys: they go first.
  const int head = blockIdx.x % x.Hq, key_head = head / (x.Hq / x.Hkv);
  const int n_rows = x.visibility.n_rows;
  const int first_query = (gridDim.x / x.Hq - 1 - blockIdx.x / x.Hq) * kQueries;
  const auto keys_of = [&](int query) { return x.visibility.keys_of(query); };
  const int first_tile = keys_of(first_query).first / kKeys;
  const int last_tile = (min(first_query + kQueries, n_rows) - 1) / kKeys;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32,
            warp_query = first_query + warp * kM * 16;
  const RowsView view(warp_query, kM * 16, n_rows, keys_of);

  const T* k = x.k + key_head * D;
  const T* v = x.v + key_head * D;
  const auto load_keys = [&](int tile) {
    load_tile<kKeys, D, kThreads>(k_tiles + tile % 2 * kKeyTile, k, x.ld_qkv, tile * kKeys, n_rows);
    load_tile<kKeys, D, kThreads>(v_tiles + tile % 2 * kKeyTile, v, x.ld_qkv, tile * kKeys, n_rows);
  };
  load_tile<kQueries, D, kThreads>(q_tile, x.q + head * D, x.ld_qkv, first_query, n_rows);
  load_tile<kQueries, D, kThreads>(dout_tile, x.dout + head * D, x.ld_dout, first_query, n_rows);
  load_keys(first_tile);

  float lse_log2[kM][2], delta[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = min(warp_query + m * 16 + half * 8 + lane / 4, n_rows - 1);
      lse_log2[m][half] = x.lse[query * x.ld_lse + head] * kLog2e;
      delta[m][half] = x.delta[query * x.ld_delta + head];
    }
  }

  const uint32_t warp_offset = warp * kM * 16 * D * 2 + place_of_a<D>();
  const float scale_log2 = x.scale * kLog2e;
  float dq[kM][D / 8][4] = {};
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    // The tile has come, and no warp reads the one before any more: its place is free.
    wait_for_copies();
    __syncthreads();
    if (tile < last_tile) load_keys(tile + 1);
    const int first_key = tile * kKeys;
    if (!view.some_of(first_key, first_key + kKeys - 1)) continue;

    const uint32_t k_tile = k_tiles + tile % 2 * kKeyTile, v_tile = v_tiles + tile % 2 * kKeyTile;
    float p[kM][kN][4], ds[kM][kN][4];
    multiply_nt<T, D>(p, q_tile + warp_offset, k_tile + place_of_b<D>());
    if (!view.all_of(first_key, first_key + kKeys - 1))
      hide(p, warp_query, first_key, n_rows, keys_of);
    multiply_nt<T, D>(ds, dout_tile + warp_offset, v_tile + place_of_b<D>());
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float p_e = exp2_fast(fmaf(p[m][n][e], scale_log2, -lse_log2[m][e / 2]));
          ds[m][n][e] = p_e * (ds[m][n][e] - delta[m][e / 2]);
        }
      }
    }
    uint32_t ds_fragments[kM][kN / 2][4];
    to_fragments<T>(ds_fragments, ds);
    multiply_nn<T, D>(dq, ds_fragments, k_tile + place_of_a<D>());
  }

#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[m][n][e] *= x.scale;
    }
  }
  // Only this warp reads its rows of Q, and it has read them.
  __syncwarp();
  store_rows<T, D>(x.dq + head * D, x.ld_dqkv, warp_query, n_rows, dq,
                   q_tile + warp * kM * 16 * D * 2);
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 2)
    attention_dkdv_kernel(const __grid_constant__ BackwardOperands<T> x) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using Side = KeySide<D>;
  constexpr int kM = Side::kM, kKeys = Side::kKeys, kQueries = Side::kQueries, kN = kQueries / 8;
  constexpr uint32_t kKeyTile = kKeys * D * 2;
  const uint32_t k_tile = shared_address(shared), v_tile = k_tile + kKeyTile,
                 stages = v_tile + kKeyTile;

  // Early keys are seen by more queries: they go first.
  const int key_head = blockIdx.x % x.Hkv, heads_per_key = x.Hq / x.Hkv;
  const int n_rows = x.visibility.n_rows;
  const int first_key = blockIdx.x / x.Hkv * kKeys, last_key = min(first_key + kKeys, n_rows) - 1;
  const auto queries_of = [&](int key) { return x.visibility.queries_of(key); };
  const int first_tile = first_key / kQueries, last_tile = queries_of(last_key).last / kQueries;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_key = first_key + warp * kM * 16;
  const RowsView view(warp_key, kM * 16, n_rows, queries_of);

  const auto load_queries = [&](int stage, int head, int tile) {
    const uint32_t to = stages + stage * Side::kStageBytes;
    const int first_query = tile * kQueries;
    load_tile<kQueries, D, kThreads>(to, x.q + head * D, x.ld_qkv, first_query, n_rows);
    load_tile<kQueries, D, kThreads>(to + Side::kTileBytes, x.dout + head * D, x.ld_dout,
                                     first_query, n_rows);
    if (threadIdx.x < 2 * kQueries) {
      const bool is_lse = threadIdx.x < kQueries;
      const int64_t query = first_query + threadIdx.x % kQueries;
      const bool valid = query < n_rows;
      const float* from = is_lse ? x.lse + query * x.ld_lse : x.delta + query * x.ld_delta;
      copy_async_4(to + 2 * Side::kTileBytes + threadIdx.x * 4, valid ? from + head : x.lse, valid);
    }
  };
  load_tile<kKeys, D, kThreads>(k_tile, x.k + key_head * D, x.ld_qkv, first_key, n_rows);
  load_tile<kKeys, D, kThreads>(v_tile, x.v + key_head * D, x.ld_qkv, first_key, n_rows);
  int next_head = key_head * heads_per_key, next_tile = first_tile;
  load_queries(0, next_head, next_tile);

  const uint32_t warp_offset = warp * kM * 16 * D * 2;
  const float scale_log2 = x.scale * kLog2e;
  float dk[kM][D / 8][4] = {}, dv[kM][D / 8][4] = {};
  const int n_stages = heads_per_key * (last_tile - first_tile + 1);
  for (int stage = 0; stage < n_stages; ++stage) {
    const int first_query = next_tile * kQueries;
    if (++next_tile > last_tile) {
      next_tile = first_tile;
      ++next_head;
    }
    // The tile has come, and no warp reads the one before any more: its place is free.
    wait_for_copies();
    __syncthreads();
    if (stage + 1 < n_stages) load_queries((stage + 1) % 2, next_head, next_tile);
    if (!view.some_of(first_query, first_query + kQueries - 1)) continue;

    const uint32_t offset = stage % 2 * Side::kStageBytes;
    const uint32_t q_tile = stages + offset, dout_tile = q_tile + Side::kTileBytes;
    // Two neighbouring queries belong to a lane.
    const float* lse =
        reinterpret_cast<const float*>(shared + 2 * kKeyTile + offset + 2 * Side::kTileBytes) +
        lane % 4 * 2;
    const float* delta = lse + kQueries;

    float p[kM][kN][4];
    multiply_nt<T, D>(p, k_tile + warp_offset + place_of_a<D>(), q_tile + place_of_b<D>());
    if (!view.all_of(first_query, first_query + kQueries - 1))
      hide(p, warp_key, first_query, n_rows, queries_of);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float lse_log2 = lse[n * 8 + e % 2] * kLog2e;
#pragma unroll
        for (int m = 0; m < kM; ++m)
          p[m][n][e] = exp2_fast(fmaf(p[m][n][e], scale_log2, -lse_log2));
      }
    }
    uint32_t fragments[kM][kN / 2][4];
    to_fragments<T>(fragments, p);
    multiply_nn<T, D>(dv, fragments, dout_tile + place_of_a<D>());

    float ds[kM][kN][4];
    multiply_nt<T, D>(ds, v_tile + warp_offset + place_of_a<D>(), dout_tile + place_of_b<D>());
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float delta_e = delta[n * 8 + e % 2];
#pragma unroll
        for (int m = 0; m < kM; ++m) ds[m][n][e] = p[m][n][e] * (ds[m][n][e] - delta_e);
      }
    }
    to_fragments<T>(fragments, ds);
    multiply_nn<T, D>(dk, fragments, q_tile + place_of_a<D>());
  }

#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[m][n][e] *= x.scale;
    }
  }
  // Only this warp reads its rows of K and V, and it has read them.
  __syncwarp();
  store_rows<T, D>(x.dk + key_head * D, x.ld_dqkv, warp_key, n_rows, dk, k_tile + warp_offset);
  store_rows<T, D>(x.dv + key_head * D, x.ld_dqkv, warp_key, n_rows, dv, v_tile + warp_offset);
}

template <class T, int D>
void launch(const BackwardOperands<T>& x, cudaStream_t stream) {
  const auto launch_one = [&](auto kernel, int rows, int heads, int bytes) {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const int64_t n_blocks = ceil_div<int64_t>(x.visibility.n_rows, rows) * heads;
    ASSERT(n_blocks < int64_t{1} << 31);
    const dim3 grid(static_cast<unsigned>(n_blocks));
    kernel<<<grid, kThreads, bytes, stream>>>(x);
    CUDA_LAUNCH_CHECK();
  };
  launch_one(attention_dq_kernel<T, D>, QuerySide<D>::kQueries, x.Hq, QuerySide<D>::kSharedBytes);
  launch_one(attention_dkdv_kernel<T, D>, KeySide<D>::kKeys, x.Hkv, KeySide<D>::kSharedBytes);
}

}  // namespace

template <class T>
void attention_backward_mma(const BackwardOperands<T>& x, cudaStream_t stream) {
  ASSERT(x.D == 64 || x.D == 128);
  x.D == 64 ? launch<T, 64>(x, stream) : launch<T, 128>(x, stream);
}
template void attention_backward_mma(const BackwardOperands<__nv_bfloat16>&, cudaStream_t);
template void attention_backward_mma(const BackwardOperands<__half>&, cudaStream_t);

}  // namespace utrain::cuda
