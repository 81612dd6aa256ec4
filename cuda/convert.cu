// y = x in y's dtype, rounded to nearest even                     CPU twin: src/cpu/cpu_backend.cpp
//   y, x [rows, cols], each float32, bfloat16 or float16 with a stride of its own. Values outside
//   float16's range become infinite. Equal dtypes copy.
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;

// 1 thread = kN elements of a row
template <int kN, class Y, class X>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(Y* y, const X* x, int64_t rows, int64_t cols, int64_t y_ld, int64_t x_ld) {
  const int64_t vectors = cols / kN, n_vectors = rows * vectors,
                step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n_vectors;
       i += step) {
    const int64_t n = i / vectors, column = i % vectors * kN;
    float values[kN];
    load(values, x + n * x_ld + column);
    store(y + n * y_ld + column, values);
  }
}

}  // namespace

void convert(const Tensor& y, const Tensor& x, cudaStream_t stream) {
  ASSERT(y.rows == x.rows && y.cols == x.cols);
  if (x.n_elem() == 0) return;
  constexpr int kN = 8;
  dispatch(y.dtype, [&](auto to) {
    dispatch(x.dtype, [&](auto from) {
      using Y = decltype(to);
      using X = decltype(from);
      if (vectorizable(kN, y, x)) {
        convert_kernel<kN><<<grid_size(x.n_elem() / kN, kThreads), kThreads, 0, stream>>>(
            y.as<Y>(), x.as<X>(), x.rows, x.cols, y.ld, x.ld);
      } else {
        convert_kernel<1><<<grid_size(x.n_elem(), kThreads), kThreads, 0, stream>>>(
            y.as<Y>(), x.as<X>(), x.rows, x.cols, y.ld, x.ld);
      }
      CUDA_LAUNCH_CHECK();
    });
  });
}

}  // namespace utrain::cuda
