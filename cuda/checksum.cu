// sum = (sum + sum over i of (2 i + 1) w_i) mod 2^48
//   x contiguous, its bytes as 32-bit words w_i   sum [1, 1] float64, an integer, updated in place
//   Sums of threads wrap mod 2^64, of which 2^48 is a divisor; blocks add theirs to sum one after
//   another, in any order: integers.   CPU twin and oracle: src/cpu/checksum.h
#include "cuda_check.h"
#include "ops.h"
#include "reduce.cuh"
#include "types.cuh"

namespace utrain::cuda {
namespace {

using Word64 = unsigned long long;  // as atomicCAS spells it

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 512;
constexpr Word64 kMask = (Word64{1} << 48) - 1;

template <class Words>
__device__ Word64 weighted(Words w, Word64 i);
template <>
__device__ inline Word64 weighted(uint32_t w, Word64 i) {
  return (2 * i + 1) * w;
}
template <>
__device__ inline Word64 weighted(uint4 w, Word64 i) {
  return weighted(w.x, 4 * i) + weighted(w.y, 4 * i + 1) + weighted(w.z, 4 * i + 2) +
         weighted(w.w, 4 * i + 3);
}

__device__ void add(double* sum, Word64 added) {
  auto* const bits = reinterpret_cast<Word64*>(sum);
  Word64 found = *static_cast<volatile Word64*>(bits), before;
  do {
    before = found;
    const auto total = static_cast<Word64>(__longlong_as_double(before)) + added;
    const auto after = static_cast<double>(total & kMask);
    found = atomicCAS(bits, before, static_cast<Word64>(__double_as_longlong(after)));
  } while (found != before);
}

// Words [0, n * sizeof(Words) / 4), 16 or 4 bytes at a time.
template <class Words>
__global__ void __launch_bounds__(kThreads)
    checksum_kernel(double* sum, const Words* __restrict__ x, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  Word64 added = 0;
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    added += weighted(x[i], static_cast<Word64>(i));
  added = block_sum<kThreads>(added);
  if (threadIdx.x == 0) add(sum, added);
}

// What 16-byte loads leave over: at most 3 words.
__global__ void tail_kernel(double* sum, const uint32_t* x, int64_t begin, int64_t end) {
  Word64 added = 0;
  for (int64_t i = begin; i < end; ++i) added += weighted(x[i], static_cast<Word64>(i));
  add(sum, added);
}

template <class Words>
void launch(double* sum, const void* x, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>(std::min(ceil_div<int64_t>(n, kThreads), kMostBlocks));
  checksum_kernel<<<blocks, kThreads, 0, stream>>>(sum, static_cast<const Words*>(x), n);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

void checksum(const Tensor& sum, const Tensor& x, cudaStream_t stream) {
  const int64_t bytes = x.n_elem() * size_of(x.dtype), n = bytes / 4;
  const auto address = reinterpret_cast<uintptr_t>(x.data);
  ASSERT(sum.n_elem() == 1 && x.contiguous() && bytes % 4 == 0 && address % 4 == 0);
  if (address % 16 != 0) return launch<uint32_t>(sum.as<double>(), x.data, n, stream);
  launch<uint4>(sum.as<double>(), x.data, n / 4, stream);
  if (n % 4 == 0) return;
  tail_kernel<<<1, 1, 0, stream>>>(sum.as<double>(), static_cast<const uint32_t*>(x.data),
                                   n / 4 * 4, n);
  CUDA_LAUNCH_CHECK();
}

}  // namespace utrain::cuda
