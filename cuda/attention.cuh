// What the attention kernels share: operands, who sees whom, and (for tensor cores) tiles in shared
// memory. A tile is [rows, D] of a 16-bit T, rows of D * 2 bytes, its 16-byte chunk c of row r at
// chunk c ^ (r % 8): the eight rows of an 8x8 matrix then lie in eight different groups of banks. A
// tile must begin at a multiple of 256 bytes; then moving a lane's address by an even number of
// chunks is one XOR.
#pragma once

#include <cuda_runtime.h>

#include "backend.h"
#include "mma.cuh"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {

// Closed, of rows of the pass.
struct Interval {
  int first, last;
};

// Both ends of both intervals never fall as their argument rises: documents follow each other.
struct Visibility {
  const int32_t* begin;  // [N] of the row's document
  const int32_t* end;
  int n_rows;  // N
  int window;  // in [1, N]

  __device__ Interval keys_of(int query) const {
    return {max(begin[query], query - window + 1), query};
  }
  __device__ Interval queries_of(int key) const { return {key, min(end[key], key + window) - 1}; }
};

template <class T>
struct ForwardOperands {
  const T *q, *k, *v;
  T* out;
  float* lse;
  int64_t ld_q, ld_k, ld_v, ld_out, ld_lse;
  Visibility visibility;
  int Hq, Hkv, D;
  float scale;
};

template <class T>
struct BackwardOperands {
  const T *q, *k, *v;  // columns of qkv
  const T* dout;
  const float *lse, *delta;
  T *dq, *dk, *dv;  // columns of dqkv
  int64_t ld_qkv, ld_dqkv, ld_dout, ld_lse, ld_delta;
  Visibility visibility;
  int Hq, Hkv, D;
  float scale;
};

// Tensor cores: T bfloat16 or float16, D 64 or 128, all pointers to T at multiples of 16 bytes, all
// ld of 8 elements.
template <class T>
void attention_forward_mma(const ForwardOperands<T>& x, cudaStream_t stream);
template <class T>
void attention_backward_mma(const BackwardOperands<T>& x, cudaStream_t stream);
// The same on Hopper.
template <class T>
void attention_forward_wgmma(const ForwardOperands<T>& x, const Hopper& gpu, cudaStream_t stream);
template <class T>
void attention_dq_wgmma(const BackwardOperands<T>& x, const Hopper& gpu, cudaStream_t stream);
template <class T>
void attention_dkdv_wgmma(const BackwardOperands<T>& x, cudaStream_t stream);
// Any T, any D up to 256, any ld.
template <class T>
void attention_forward_fma(const ForwardOperands<T>& x, cudaStream_t stream);
template <class T>
void attention_backward_fma(const BackwardOperands<T>& x, cudaStream_t stream);

inline constexpr int kMaxHeadDim = 256;
inline constexpr float kLog2e = 1.4426950408889634f;

// ---- tiles

// Starts copying rows [first_row, first_row + kRows) of x [n_rows, D]; rows past the end become
// zeros.
template <int kRows, int D, int kThreads, class T>
__device__ __forceinline__ void load_tile(uint32_t tile, const T* x, int64_t ld, int first_row,
                                          int n_rows) {
  constexpr int kChunks = D / 8, kRowsAtOnce = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRowsAtOnce % 8 == 0 && kRows % kRowsAtOnce == 0);
  const int r = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  const uint32_t to = tile + r * D * 2 + ((chunk ^ (r % 8)) << 4);
  const T* from = x + int64_t{first_row + r} * ld + chunk * 8;
#pragma unroll
  for (int i = 0; i < kRows; i += kRowsAtOnce) {
    const bool valid = first_row + r + i < n_rows;
    copy_async_16(to + i * D * 2, valid ? from : x, valid);
    from += kRowsAtOnce * ld;
  }
}

// This lane's place in a tile for load_matrices: of the fragment A at the tile's first row and
// column, and of B' where B [16, 8 * 2] is loaded transposed; then of two fragments B that lie in
// the tile as their transposes.
template <int D>
__device__ __forceinline__ uint32_t place_of_a() {
  const int lane = threadIdx.x % 32;
  return (lane % 16) * D * 2 + (((lane / 16) ^ (lane % 8)) << 4);
}
template <int D>
__device__ __forceinline__ uint32_t place_of_b() {
  const int lane = threadIdx.x % 32;
  return (lane % 8 + lane / 16 * 8) * D * 2 + ((((lane / 8) % 2) ^ (lane % 8)) << 4);
}

// c [16 kM, 8 kN] = A B'; a = place_of_a in A's tile [.., D], b = place_of_b in B's.
template <class T, int D, int kM, int kN>
__device__ __forceinline__ void multiply_nt(float (&c)[kM][kN][4], uint32_t a, uint32_t b) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a_k[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) load_matrices(a_k[m], (a ^ (k << 5)) + m * 16 * D * 2);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b_k[4];
      load_matrices(b_k, (b ^ (k << 5)) + n * 8 * D * 2);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add<T>(c[m][n], a_k[m], b_k[0], b_k[1]);
        multiply_add<T>(c[m][n + 1], a_k[m], b_k[2], b_k[3]);
      }
    }
  }
}

// c [16 kM, D] += A B; a = fragments of A [16 kM, 16 kK], b = place_of_a in B's tile [.., D].
template <class T, int D, int kM, int kK>
__device__ __forceinline__ void multiply_nn(float (&c)[kM][D / 8][4],
                                            const uint32_t (&a)[kM][kK][4], uint32_t b) {
#pragma unroll
  for (int k = 0; k < kK; ++k) {
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t b_n[4];
      load_matrices_transposed(b_n, (b ^ (n << 4)) + k * 16 * D * 2);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add<T>(c[m][n], a[m][k], b_n[0], b_n[1]);
        multiply_add<T>(c[m][n + 1], a[m][k], b_n[2], b_n[3]);
      }
    }
  }
}

// Sums [16 kM, 8 kN] of one product as the fragments A of the next.
template <class T, int kM, int kN>
__device__ __forceinline__ void to_fragments(uint32_t (&a)[kM][kN / 2][4],
                                             const float (&c)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      a[m][n / 2][n % 2 * 2] = pack<T>(c[m][n][0], c[m][n][1]);
      a[m][n / 2][n % 2 * 2 + 1] = pack<T>(c[m][n][2], c[m][n][3]);
    }
  }
}

// Rows [first_row, ..) of x = c, those before n_rows. tile: 16 kM rows of shared memory that this
// warp alone uses, so that rows leave in pieces of 16 bytes.
template <class T, int D, int kM>
__device__ __forceinline__ void store_rows(T* x, int64_t ld, int first_row, int n_rows,
                                           const float (&c)[kM][D / 8][4], uint32_t tile) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const uint32_t to = tile + (m * 16 + g) * D * 2 + ((n ^ g) << 4) + t * 4;
      store_shared(to, pack<T>(c[m][n][0], c[m][n][1]));
      store_shared(to + 8 * D * 2, pack<T>(c[m][n][2], c[m][n][3]));
    }
  }
  __syncwarp();
  constexpr int kChunks = D / 8;
  const int chunk = lane % kChunks;
#pragma unroll
  for (int i = 0; i < kM * 16; i += 32 / kChunks) {
    const int r = i + lane / kChunks, row = first_row + r;
    const uint4 values = load_shared_16(tile + r * D * 2 + ((chunk ^ (r % 8)) << 4));
    if (row < n_rows)
      store_word(reinterpret_cast<uint4*>(x + int64_t{row} * ld + chunk * 8), values);
  }
}

// ---- who sees whom, for a few rows against a tile's columns

// Of rows [first_row, first_row + n) of the pass, those that exist: what the first and the last of
// them see.
struct RowsView {
  Interval of_first = {1, 0}, of_last = {1, 0};
  bool exists = false;

  template <class Visible>
  __device__ RowsView(int first_row, int n, int n_rows, Visible visible) {
    if (first_row >= n_rows) return;
    exists = true;
    of_first = visible(first_row);
    of_last = visible(min(first_row + n, n_rows) - 1);
  }
  __device__ bool some_of(int first, int last) const {
    return exists && first <= of_last.last && last >= of_first.first;
  }
  __device__ bool all_of(int first, int last) const {
    return first >= of_last.first && last <= of_first.last;
  }
  // The tiles of kColumns that some of them see. Precondition: exists.
  template <int kColumns>
  __device__ Interval tiles() const {
    return {of_first.first / kColumns, of_last.last / kColumns};
  }
};

// s = -inf where the column is not visible from the row.
template <int kM, int kN, class Visible>
__device__ __forceinline__ void hide(float (&s)[kM][kN][4], int first_row, int first_column,
                                     int n_rows, Visible visible) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Interval seen = visible(min(first_row + m * 16 + half * 8 + g, n_rows - 1));
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = first_column + n * 8 + t * 2 + e;
          if (column < seen.first || column > seen.last) s[m][n][half * 2 + e] = -INFINITY;
        }
      }
    }
  }
}

// ---- softmax of rows whose scores come in tiles

// Of four lanes that hold the same rows.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Of this lane's rows g, g + 8 of each m. sum: over this lane's columns alone.
template <int kM, int kN>
struct Softmax {
  float largest[kM][2], sum[kM][2], shrink[kM][2];

  __device__ Softmax() {
    for (int m = 0; m < kM; ++m) {
      largest[m][0] = largest[m][1] = -INFINITY;
      sum[m][0] = sum[m][1] = 0.0f;
    }
  }

  // s = 2^(scale_log2 s - the largest so far).
  __device__ __forceinline__ void update(float (&s)[kM][kN][4], float scale_log2) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float found = largest[m][half];
#pragma unroll
        for (int n = 0; n < kN; ++n)
          found = fmaxf(found, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
        found = quad_max(found);
        // A row that has seen no key yet.
        const float shift = found == -INFINITY ? 0.0f : found * scale_log2;
        shrink[m][half] = exp2_fast(largest[m][half] * scale_log2 - shift);
        largest[m][half] = found;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int e = half * 2; e < half * 2 + 2; ++e) {
            s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale_log2, -shift));
            total += s[m][n][e];
          }
        }
        sum[m][half] = sum[m][half] * shrink[m][half] + total;
      }
    }
  }

  // What was summed before the last update, by its largest.
  template <int kColumns>
  __device__ __forceinline__ void shrink_sums(float (&o)[kM][kColumns][4]) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[m][n][e] *= shrink[m][e / 2];
      }
    }
  }
};

}  // namespace utrain::cuda
