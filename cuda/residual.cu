// h = x + branch
//   h, x, branch [N, C] T   h =; h may be x. Rounded to T once.
//   CPU twin and oracle: src/cpu/residual.h
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 2;  // rows a thread takes at once: their loads are in flight together
constexpr int64_t kLargestGridY = 65535;

template <class T>
struct Operands {
  T* h;
  const T *x, *branch;
  int64_t ld_h, ld_x, ld_branch, rows, C;
};

template <class T, int N>
__global__ void residual_forward_kernel(Operands<T> a) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (c >= a.C) return;
  for (int64_t n = static_cast<int64_t>(blockIdx.y) * kRows; n < a.rows; n += gridDim.y * kRows) {
    Elements<T, N> x[kRows], branch[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (n + i >= a.rows) break;
      x[i] = Elements<T, N>::load(a.x + (n + i) * a.ld_x + c);
      branch[i] = Elements<T, N>::load(a.branch + (n + i) * a.ld_branch + c);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (n + i >= a.rows) break;
      float h[N];
#pragma unroll
      for (int j = 0; j < N; ++j) h[j] = to_float(x[i].x[j]) + to_float(branch[i].x[j]);
      store<N>(a.h + (n + i) * a.ld_h + c, h);
    }
  }
}

template <class T, int N>
void launch(const Operands<T>& operands, cudaStream_t stream) {
  const dim3 grid(
      static_cast<unsigned>(ceil_div<int64_t>(operands.C, kThreads * N)),
      static_cast<unsigned>(std::min(ceil_div<int64_t>(operands.rows, kRows), kLargestGridY)));
  residual_forward_kernel<T, N><<<grid, kThreads, 0, stream>>>(operands);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

void residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch, cudaStream_t stream) {
  ASSERT(x.rows == h.rows && x.cols == h.cols && x.dtype == h.dtype);
  ASSERT(branch.rows == h.rows && branch.cols == h.cols && branch.dtype == h.dtype);
  if (h.n_elem() == 0) return;
  dispatch(h.dtype, [&](auto t) {
    using T = decltype(t);
    const Operands<T> operands{h.as<T>(), x.as<T>(), branch.as<T>(), h.ld,
                               x.ld,      branch.ld, h.rows,         h.cols};
    if (vectorizable(kVector<T>, h, x, branch)) {
      launch<T, kVector<T>>(operands, stream);
    } else {
      launch<T, 1>(operands, stream);
    }
  });
}

}  // namespace utrain::cuda
