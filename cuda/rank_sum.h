// sum[i] = ((x_0[i] + x_1[i]) + x_2[i]) + ... over ranks: the order promise of comm/collectives.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace utrain::cuda {

// What all ranks have for one slice: this rank's own, and what it received from the others in the
// order of their ranks. T float or double.
template <class T>
struct RankParts {
  const T* own;
  const T* received;  // 16-byte aligned, as is every part of it
  int64_t stride;     // elements from one received part to the next
  int rank, size;
};

// n elements; sum may be parts.own (in place).
template <class T>
void sum_in_rank_order(T* sum, const RankParts<T>& parts, int64_t n, cudaStream_t stream);

}  // namespace utrain::cuda
