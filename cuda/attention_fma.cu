// Attention on ordinary arithmetic units, for what tensor cores do not take: float32, other D, odd
// strides.
//   A block holds 32 queries (or keys) of a head and walks over tiles of 32 keys (or queries);
//   operands pass through shared memory as float32 in chunks of 64 columns, so any D up to 256
//   needs the same room. A thread has two roles in turn: it makes 2 x 2 scores of a tile, then an
//   eighth of one row of the sums.
//   Equations: attention_forward.cu, attention_backward.cu.           CPU twin: src/cpu/attention.h
#include "attention.cuh"
#include "cuda_check.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256, kTile = 32, kChunk = 64, kMaxChunks = kMaxHeadDim / kChunk;
constexpr int kStride = kChunk + 4;      // 17 times 16 bytes: rows begin in different banks
constexpr int kScoreStride = kTile + 1;  // so do columns
constexpr int kColumns = kChunk * kTile / kThreads;  // of a chunk, a thread's share of a row

using Chunk = float[kTile * kStride];
using Scores = float[kTile * kScoreStride];

// Rows [first_row, + 32), columns [first_column, + 64) of x [n_rows, D]; zeros outside.
template <class T>
__device__ void load_chunk(float* chunk, const T* x, int64_t ld, int first_row, int n_rows,
                           int first_column, int D) {
  const int c = threadIdx.x % kChunk, column = first_column + c;
  for (int r = threadIdx.x / kChunk; r < kTile; r += kThreads / kChunk) {
    const int row = first_row + r;
    chunk[r * kStride + c] =
        row < n_rows && column < D ? to_float(x[int64_t{row} * ld + column]) : 0.0f;
  }
}

// The scores of a thread: rows score_row() + 16 a, columns score_column() + 16 b.
__device__ int score_row() {
  return threadIdx.x / 16;
}
__device__ int score_column() {
  return threadIdx.x % 16;
}

// s += rows of A times rows of B over one chunk.
__device__ void add_dots(float (&s)[2][2], const float* A, const float* B) {
  const float* a = A + score_row() * kStride;
  const float* b = B + score_column() * kStride;
#pragma unroll 4
  for (int d = 0; d < kChunk; d += 4) {
    float4 a_d[2], b_d[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a_d[i] = *reinterpret_cast<const float4*>(a + i * 16 * kStride + d);
      b_d[i] = *reinterpret_cast<const float4*>(b + i * 16 * kStride + d);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        s[i][j] = fmaf(a_d[i].x, b_d[j].x, s[i][j]);
        s[i][j] = fmaf(a_d[i].y, b_d[j].y, s[i][j]);
        s[i][j] = fmaf(a_d[i].z, b_d[j].z, s[i][j]);
        s[i][j] = fmaf(a_d[i].w, b_d[j].w, s[i][j]);
      }
    }
  }
}

// The sums of a thread: row sum_row(), columns sum_column() + 32 i + {0..3} of each chunk.
__device__ int sum_row() {
  return threadIdx.x / 8;
}
__device__ int sum_column() {
  return threadIdx.x % 8 * 4;
}

// sums += weights times the rows of a chunk; weight j at weights[j * stride].
__device__ void add_rows(float (&sums)[kColumns], const float* weights, int stride,
                         const float* chunk) {
#pragma unroll 4
  for (int j = 0; j < kTile; ++j) {
    const float weight = weights[j * stride];
#pragma unroll
    for (int i = 0; i < kColumns; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(chunk + j * kStride + sum_column() + i * 8);
      sums[i] = fmaf(weight, x.x, sums[i]);
      sums[i + 1] = fmaf(weight, x.y, sums[i + 1]);
      sums[i + 2] = fmaf(weight, x.z, sums[i + 2]);
      sums[i + 3] = fmaf(weight, x.w, sums[i + 3]);
    }
  }
}

// This thread's part of row first_row + sum_row() of x [n_rows, D] = factor * sums.
template <class T>
__device__ void store_sums(T* x, int64_t ld, int first_row, int n_rows, int D,
                           const float (&sums)[kMaxChunks][kColumns], float factor) {
  const int row = first_row + sum_row();
  if (row >= n_rows) return;
#pragma unroll
  for (int c = 0; c < kMaxChunks; ++c) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = c * kChunk + sum_column() + i / 4 * 32 + i % 4;
      if (column < D) x[int64_t{row} * ld + column] = from_float<T>(factor * sums[c][i]);
    }
  }
}

__device__ bool is_visible(const Visibility& visibility, int query, int key) {
  if (query >= visibility.n_rows || key > query) return false;
  return key >= visibility.keys_of(query).first;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(const __grid_constant__ ForwardOperands<T> x) {
  __shared__ __align__(16) Chunk a, b;
  __shared__ Scores scores;
  const int head = blockIdx.x % x.Hq, key_head = head / (x.Hq / x.Hkv), D = x.D;
  const int n_rows = x.visibility.n_rows;
  const int first_query = (gridDim.x / x.Hq - 1 - blockIdx.x / x.Hq) * kTile;
  const int last_query = min(first_query + kTile, n_rows) - 1;
  const T* q = x.q + int64_t{head} * D;
  const T* k = x.k + int64_t{key_head} * D;
  const T* v = x.v + int64_t{key_head} * D;

  // Of row sum_row(), the same in its eight threads.
  float largest = -INFINITY, sum = 0.0f;
  float out[kMaxChunks][kColumns] = {};
  const int first_tile = x.visibility.keys_of(first_query).first / kTile;
  for (int first_key = first_tile * kTile; first_key <= last_query; first_key += kTile) {
    float s[2][2] = {};
    for (int c = 0; c < D; c += kChunk) {
      __syncthreads();
      load_chunk(a, q, x.ld_q, first_query, n_rows, c, D);
      load_chunk(b, k, x.ld_k, first_key, n_rows, c, D);
      __syncthreads();
      add_dots(s, a, b);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = score_row() + i * 16, c = score_column() + j * 16;
        const bool visible = is_visible(x.visibility, first_query + r, first_key + c);
        scores[r * kScoreStride + c] = visible ? s[i][j] * x.scale : -INFINITY;
      }
    }
    __syncthreads();

    float* row = scores + sum_row() * kScoreStride;
    float found = largest;
    for (int c = threadIdx.x % 8; c < kTile; c += 8) found = fmaxf(found, row[c]);
    for (int lanes = 1; lanes < 8; lanes *= 2)
      found = fmaxf(found, __shfl_xor_sync(0xffffffffu, found, lanes));
    // A row that has seen no key yet.
    const float shift = found == -INFINITY ? 0.0f : found;
    const float shrink = expf(largest - shift);
    largest = found;
    float total = 0.0f;
    for (int c = threadIdx.x % 8; c < kTile; c += 8) {
      row[c] = expf(row[c] - shift);
      total += row[c];
    }
    for (int lanes = 1; lanes < 8; lanes *= 2) total += __shfl_xor_sync(0xffffffffu, total, lanes);
    sum = sum * shrink + total;
#pragma unroll
    for (int c = 0; c < kMaxChunks; ++c) {
      if (c * kChunk >= D) break;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) out[c][i] *= shrink;
      __syncthreads();
      load_chunk(b, v, x.ld_v, first_key, n_rows, c * kChunk, D);
      __syncthreads();
      add_rows(out[c], row, 1, b);
    }
  }
  store_sums(x.out + int64_t{head} * D, x.ld_out, first_query, n_rows, D, out, 1.0f / sum);
  const int query = first_query + sum_row();
  if (threadIdx.x % 8 == 0 && query < n_rows)
    x.lse[int64_t{query} * x.ld_lse + head] = largest + logf(sum);
}

// Shared memory of the backward kernels.
struct BackwardTiles {
  __align__(16) Chunk q, dout, k, v;
  Scores p, ds;  // [query, key]
};

// p and ds of 32 queries and 32 keys; leaves the last chunks of the operands in the tiles.
template <class T>
__device__ void make_ds(BackwardTiles& tiles, const BackwardOperands<T>& x, int head,
                        int first_query, int first_key) {
  const int n_rows = x.visibility.n_rows, D = x.D, key_head = head / (x.Hq / x.Hkv);
  float s[2][2] = {}, dp[2][2] = {};
  for (int c = 0; c < D; c += kChunk) {
    __syncthreads();
    load_chunk(tiles.q, x.q + int64_t{head} * D, x.ld_qkv, first_query, n_rows, c, D);
    load_chunk(tiles.dout, x.dout + int64_t{head} * D, x.ld_dout, first_query, n_rows, c, D);
    load_chunk(tiles.k, x.k + int64_t{key_head} * D, x.ld_qkv, first_key, n_rows, c, D);
    load_chunk(tiles.v, x.v + int64_t{key_head} * D, x.ld_qkv, first_key, n_rows, c, D);
    __syncthreads();
    add_dots(s, tiles.q, tiles.k);
    add_dots(dp, tiles.dout, tiles.v);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = score_row() + i * 16, c = score_column() + j * 16, query = first_query + r;
      float p = 0.0f, ds = 0.0f;
      if (is_visible(x.visibility, query, first_key + c)) {
        p = expf(s[i][j] * x.scale - x.lse[int64_t{query} * x.ld_lse + head]);
        ds = p * (dp[i][j] - x.delta[int64_t{query} * x.ld_delta + head]);
      }
      tiles.p[r * kScoreStride + c] = p;
      tiles.ds[r * kScoreStride + c] = ds;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_dq_kernel(const __grid_constant__ BackwardOperands<T> x) {
  __shared__ BackwardTiles tiles;
  const int head = blockIdx.x % x.Hq, key_head = head / (x.Hq / x.Hkv), D = x.D;
  const int n_rows = x.visibility.n_rows;
  const int first_query = (gridDim.x / x.Hq - 1 - blockIdx.x / x.Hq) * kTile;
  const int last_query = min(first_query + kTile, n_rows) - 1;
  float dq[kMaxChunks][kColumns] = {};
  const int first_tile = x.visibility.keys_of(first_query).first / kTile;
  for (int first_key = first_tile * kTile; first_key <= last_query; first_key += kTile) {
    make_ds(tiles, x, head, first_query, first_key);
#pragma unroll
    for (int c = 0; c < kMaxChunks; ++c) {
      if (c * kChunk >= D) break;
      __syncthreads();
      load_chunk(tiles.k, x.k + int64_t{key_head} * D, x.ld_qkv, first_key, n_rows, c * kChunk, D);
      __syncthreads();
      add_rows(dq[c], tiles.ds + sum_row() * kScoreStride, 1, tiles.k);
    }
  }
  store_sums(x.dq + int64_t{head} * D, x.ld_dqkv, first_query, n_rows, D, dq, x.scale);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_dkdv_kernel(const __grid_constant__ BackwardOperands<T> x) {
  __shared__ BackwardTiles tiles;
  const int key_head = blockIdx.x % x.Hkv, heads_per_key = x.Hq / x.Hkv, D = x.D;
  const int n_rows = x.visibility.n_rows;
  const int first_key = blockIdx.x / x.Hkv * kTile, last_key = min(first_key + kTile, n_rows) - 1;
  const int last_query = x.visibility.queries_of(last_key).last;
  float dk[kMaxChunks][kColumns] = {}, dv[kMaxChunks][kColumns] = {};
  for (int head = key_head * heads_per_key; head < (key_head + 1) * heads_per_key; ++head) {
    for (int first_query = first_key; first_query <= last_query; first_query += kTile) {
      make_ds(tiles, x, head, first_query, first_key);
#pragma unroll
      for (int c = 0; c < kMaxChunks; ++c) {
        if (c * kChunk >= D) break;
        __syncthreads();
        load_chunk(tiles.q, x.q + int64_t{head} * D, x.ld_qkv, first_query, n_rows, c * kChunk, D);
        load_chunk(tiles.dout, x.dout + int64_t{head} * D, x.ld_dout, first_query, n_rows,
                   c * kChunk, D);
        __syncthreads();
        add_rows(dk[c], tiles.ds + sum_row(), kScoreStride, tiles.q);
        add_rows(dv[c], tiles.p + sum_row(), kScoreStride, tiles.dout);
      }
    }
  }
  store_sums(x.dk + int64_t{key_head} * D, x.ld_dqkv, first_key, n_rows, D, dk, x.scale);
  store_sums(x.dv + int64_t{key_head} * D, x.ld_dqkv, first_key, n_rows, D, dv, 1.0f);
}

template <class Operands>
void launch(void (*kernel)(Operands), const Operands& x, int heads, cudaStream_t stream) {
  const int64_t n_blocks = ceil_div<int64_t>(x.visibility.n_rows, kTile) * heads;
  ASSERT(n_blocks < int64_t{1} << 31);
  const dim3 grid(static_cast<unsigned>(n_blocks));
  kernel<<<grid, kThreads, 0, stream>>>(x);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

template <class T>
void attention_forward_fma(const ForwardOperands<T>& x, cudaStream_t stream) {
  launch<ForwardOperands<T>>(attention_forward_kernel<T>, x, x.Hq, stream);
}
template <class T>
void attention_backward_fma(const BackwardOperands<T>& x, cudaStream_t stream) {
  launch<BackwardOperands<T>>(attention_dq_kernel<T>, x, x.Hq, stream);
  launch<BackwardOperands<T>>(attention_dkdv_kernel<T>, x, x.Hkv, stream);
}
template void attention_forward_fma(const ForwardOperands<float>&, cudaStream_t);
template void attention_forward_fma(const ForwardOperands<__nv_bfloat16>&, cudaStream_t);
template void attention_forward_fma(const ForwardOperands<__half>&, cudaStream_t);
template void attention_backward_fma(const BackwardOperands<float>&, cudaStream_t);
template void attention_backward_fma(const BackwardOperands<__nv_bfloat16>&, cudaStream_t);
template void attention_backward_fma(const BackwardOperands<__half>&, cudaStream_t);

}  // namespace utrain::cuda
