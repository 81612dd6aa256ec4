// sum[i] = ((x_0[i] + x_1[i]) + x_2[i]) + ... in rank order.
//   own and received parts (n) f32|f64     sum (n) = , may be own. 16-byte loads where own and sum
//   allow, else one by one. Adds in T.     CPU twin: src/comm/mpi_collectives.cpp
#include <algorithm>

#include "cuda_check.h"
#include "rank_sum.h"

namespace utrain::cuda {
namespace {

constexpr int64_t kVectorBytes = 16;

template <class T>
__device__ const T* part_of(const RankParts<T>& parts, int r) {
  if (r == parts.rank) return parts.own;
  return parts.received + (r < parts.rank ? r : r - 1) * parts.stride;
}

template <class T, int W>
struct alignas(sizeof(T) * W) Vector {
  T x[W];
};

// W neighbours starting at i: ((x_0 + x_1) + x_2) + ... in rank order.
template <class T, int W>
__device__ void sum_neighbours(T* sum, const RankParts<T>& parts, int64_t i) {
  using V = Vector<T, W>;
  V total = *reinterpret_cast<const V*>(part_of(parts, 0) + i);
#pragma unroll 4
  for (int r = 1; r < parts.size; ++r) {
    const V part = *reinterpret_cast<const V*>(part_of(parts, r) + i);
#pragma unroll
    for (int k = 0; k < W; ++k) total.x[k] += part.x[k];
  }
  *reinterpret_cast<V*>(sum + i) = total;
}

// 1 thread = W elements a turn; sum may be parts.own. The last n % W elements go one by one.
template <class T, int W>
__global__ void sum_kernel(T* sum, RankParts<T> parts, int64_t n) {
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t n_threads = int64_t{gridDim.x} * blockDim.x;
  const int64_t n_vectors = n / W;
  for (int64_t v = thread; v < n_vectors; v += n_threads) sum_neighbours<T, W>(sum, parts, v * W);
  for (int64_t i = n_vectors * W + thread; i < n; i += n_threads)
    sum_neighbours<T, 1>(sum, parts, i);
}

}  // namespace

template <class T>
void sum_in_rank_order(T* sum, const RankParts<T>& parts, int64_t n, cudaStream_t stream) {
  if (n == 0 || (parts.size == 1 && sum == parts.own)) return;
  constexpr int kThreads = 256, W = kVectorBytes / sizeof(T);
  constexpr int64_t kMaxBlocks = 512;  // the backend computes beside it
  const bool vectors =
      (reinterpret_cast<uintptr_t>(sum) | reinterpret_cast<uintptr_t>(parts.own)) % kVectorBytes ==
      0;
  const int64_t per_block = int64_t{kThreads} * (vectors ? W : 1);
  const auto blocks = static_cast<unsigned>(std::min(kMaxBlocks, (n + per_block - 1) / per_block));
  if (vectors)
    sum_kernel<T, W><<<blocks, kThreads, 0, stream>>>(sum, parts, n);
  else
    sum_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(sum, parts, n);
  CUDA_LAUNCH_CHECK();
}

template void sum_in_rank_order(float*, const RankParts<float>&, int64_t, cudaStream_t);
template void sum_in_rank_order(double*, const RankParts<double>&, int64_t, cudaStream_t);

}  // namespace utrain::cuda
