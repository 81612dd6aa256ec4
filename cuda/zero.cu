// x = 0
//   x [rows, cols] of any dtype; what lies between its rows is left alone
#include "cuda_check.h"
#include "ops.h"

namespace utrain::cuda {

void zero(const Tensor& x, cudaStream_t stream) {
  if (x.n_elem() == 0) return;
  const int64_t size = size_of(x.dtype);
  if (x.contiguous()) {
    CUDA_CHECK(cudaMemsetAsync(x.data, 0, x.n_elem() * size, stream));
  } else {
    CUDA_CHECK(cudaMemset2DAsync(x.data, x.ld * size, 0, x.cols * size, x.rows, stream));
  }
}

}  // namespace utrain::cuda
