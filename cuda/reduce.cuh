// Sums and maxima over a warp or a block, in a fixed order: equal inputs give equal bits, and every
// thread gets the result.
//   warp_*: all 32 lanes must call. block_*<kThreads>: all threads of a one-dimensional block of
//   kThreads (a multiple of 32) must call; they synchronise the block and may be called again at
//   once.
#pragma once

#include <cuda_runtime.h>

namespace utrain::cuda {

struct Sum {
  template <class S>
  __device__ S operator()(S a, S b) const {
    return a + b;
  }
};
// NaN wins, so that a row with one shows it.
struct Max {
  template <class S>
  __device__ S operator()(S a, S b) const {
    return a > b || a != a ? a : b;
  }
};

template <class Operation, class S>
__device__ inline S warp_reduce(S x, Operation operation) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x = operation(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

template <int kThreads, class Operation, class S>
__device__ inline S block_reduce(S x, Operation operation) {
  static_assert(kThreads % 32 == 0 && kThreads >= 32 && kThreads <= 1024);
  x = warp_reduce(x, operation);
  if constexpr (kThreads > 32) {
    __shared__ S parts[kThreads / 32];
    // Readers of an earlier call are done.
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
#pragma unroll
    for (int i = 1; i < kThreads / 32; ++i) x = operation(x, parts[i]);
  }
  return x;
}

template <class S>
__device__ inline S warp_sum(S x) {
  return warp_reduce(x, Sum());
}
template <class S>
__device__ inline S warp_max(S x) {
  return warp_reduce(x, Max());
}
template <int kThreads, class S>
__device__ inline S block_sum(S x) {
  return block_reduce<kThreads>(x, Sum());
}
template <int kThreads, class S>
__device__ inline S block_max(S x) {
  return block_reduce<kThreads>(x, Max());
}

}  // namespace utrain::cuda
