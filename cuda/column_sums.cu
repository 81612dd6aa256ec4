// sums[k] += sum over rows of dy[n, k]; or, for a norm's weight, over rows and groups of columns of
// dy[n, g K + k] * x[n, g K + k] * rstd[n, g]
//   dy, x [N, G*K] T   rstd [N, G] float32   sums [1, K] float32 +=
//   scratch [kColumnParts, >= K] float32
//   The rows of a part are added by one block, its warps taking every eighth, and the parts in
//   order by a second kernel: the order depends on N, G and K alone. Accumulates in float32. CPU
//   twin: src/cpu/column_sums.h
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// What is added up: row i is group i % G of row i / G. x = nullptr: dy alone.
template <class T>
struct Terms {
  const T *dy, *x;
  const float* rstd;
  int64_t ld_dy, ld_x, ld_rstd, rows;
  int G, K;
};

// A block adds the rows of part blockIdx.y in 32 * N columns.
template <class T, int N, bool kNorm>
__global__ void __launch_bounds__(kThreads)
    column_parts_kernel(float* parts, int64_t ld_parts, Terms<T> a) {
  __shared__ float of_warp[kWarps][32 * N];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * 32 * N;
  const int64_t k = first_column + lane * N;
  const int64_t begin = a.rows * blockIdx.y / kColumnParts;
  const int64_t end = a.rows * (blockIdx.y + 1) / kColumnParts;
  float sum[N] = {};
  if (k < a.K) {
#pragma unroll 4
    for (int64_t i = begin + warp; i < end; i += kWarps) {
      const int64_t n = i / a.G, g = i - n * a.G;
      float dy[N];
      load<N>(dy, a.dy + n * a.ld_dy + g * a.K + k);
      if constexpr (kNorm) {
        float x[N];
        load<N>(x, a.x + n * a.ld_x + g * a.K + k);
        const float r = a.rstd[n * a.ld_rstd + g];
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += dy[j] * (x[j] * r);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += dy[j];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) of_warp[warp][lane * N + j] = sum[j];
  __syncthreads();
  const int column = threadIdx.x;
  if (column >= 32 * N || first_column + column >= a.K) return;
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += of_warp[w][column];
  parts[blockIdx.y * ld_parts + first_column + column] = total;
}

__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(float* sums, const float* parts, int64_t ld_parts, int64_t K) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= K) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int part = 0; part < kColumnParts; ++part) sum += parts[part * ld_parts + k];
  sums[k] += sum;
}

template <class T, bool kNorm>
void launch(const Tensor& sums, const Tensor& scratch, const Terms<T>& terms, bool vectors,
            cudaStream_t stream) {
  constexpr int N = kVector<T>;
  const int width = vectors ? N : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div(terms.K, 32 * width)), kColumnParts);
  const auto kernel = vectors ? column_parts_kernel<T, N, kNorm> : column_parts_kernel<T, 1, kNorm>;
  kernel<<<grid, kThreads, 0, stream>>>(scratch.as<float>(), scratch.ld, terms);
  CUDA_LAUNCH_CHECK();
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(terms.K, kThreads));
  add_parts_kernel<<<blocks, kThreads, 0, stream>>>(sums.as<float>(), scratch.as<float>(),
                                                    scratch.ld, terms.K);
  CUDA_LAUNCH_CHECK();
}

void check(const Tensor& sums, const Tensor& scratch) {
  ASSERT(sums.rows == 1 && sums.cols <= INT32_MAX / 2);
  ASSERT(scratch.rows >= kColumnParts && scratch.cols >= sums.cols);
}

}  // namespace

void add_column_sums(const Tensor& sums, const Tensor& dy, const Tensor& scratch,
                     cudaStream_t stream) {
  check(sums, scratch);
  ASSERT(dy.cols == sums.cols);
  if (dy.n_elem() == 0) return;
  dispatch(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const Terms<T> terms{
        dy.as<T>(), nullptr, nullptr, dy.ld, 0, 0, dy.rows, 1, static_cast<int>(dy.cols)};
    launch<T, false>(sums, scratch, terms, vectorizable(dy, kVector<T>), stream);
  });
}

void add_norm_column_sums(const Tensor& sums, const Tensor& dy, const Tensor& x, const Tensor& rstd,
                          const Tensor& scratch, cudaStream_t stream) {
  check(sums, scratch);
  ASSERT(dy.rows == x.rows && dy.cols == x.cols && dy.dtype == x.dtype && rstd.rows == x.rows);
  ASSERT(x.cols == rstd.cols * sums.cols);
  if (dy.n_elem() == 0) return;
  dispatch(dy.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = kVector<T>;
    const Terms<T> terms{dy.as<T>(),
                         x.as<T>(),
                         rstd.as<float>(),
                         dy.ld,
                         x.ld,
                         rstd.ld,
                         x.rows * rstd.cols,
                         static_cast<int>(rstd.cols),
                         static_cast<int>(sums.cols)};
    launch<T, true>(sums, scratch, terms, sums.cols % N == 0 && vectorizable(N, dy, x), stream);
  });
}

}  // namespace utrain::cuda
