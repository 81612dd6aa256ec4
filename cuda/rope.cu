// (x_i, x_{i+D/2}) turned by the angle position * frequency_i     Su et al. 2021, arXiv:2104.09864
//   x, dx [N, H*D] T, in place, H = any number of heads
//   cos_sin [positions, D] float32: D/2 cosines, then D/2 sines
//   forward turns by +angle, backward by -angle.
//   Requires D even. A position outside of the table makes its row NaN, so that the fault shows. A
//   block takes a row and a thread the same columns of several heads: angles are read once a row.
//   Computes in float32, rounds to T once.   CPU twin and oracle: src/cpu/rope.h
#include <cmath>

#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;      // about: a whole number of heads, less than one more than this
constexpr int kLargestHead = 256;  // threads
constexpr int kHeads = 2;  // heads a thread takes at once: their loads are in flight together

template <class T>
struct Operands {
  T* x;
  const float* cos_sin;
  const int32_t* positions;
  int64_t ld_x, ld_cos_sin;
  int64_t n_positions;
  int H, D;
  float sign;
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads + kLargestHead) rope_kernel(Operands<T> a) {
  const int half = a.D / 2, threads_per_head = half / N;
  const int i = static_cast<int>(threadIdx.x) % threads_per_head * N;
  const int first = static_cast<int>(threadIdx.x) / threads_per_head;
  const int step = static_cast<int>(blockDim.x) / threads_per_head;
  const int64_t row = blockIdx.x;
  const int32_t position = a.positions[row];
  const bool inside = position >= 0 && position < a.n_positions;
  const float* angles = a.cos_sin + (inside ? position : 0) * a.ld_cos_sin + i;
  float cosine[N], sine[N];
  load<N>(cosine, angles);
  load<N>(sine, angles + half);
  const float sign = inside ? a.sign : NAN;
#pragma unroll
  for (int k = 0; k < N; ++k) sine[k] *= sign;
  T* x = a.x + row * a.ld_x + i;
  for (int head = first; head < a.H; head += kHeads * step) {
    Elements<T, N> low[kHeads], high[kHeads];
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      if (head + j * step >= a.H) break;
      const T* source = x + static_cast<int64_t>(head + j * step) * a.D;
      low[j] = Elements<T, N>::load(source);
      high[j] = Elements<T, N>::load(source + half);
    }
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      if (head + j * step >= a.H) break;
      float new_low[N], new_high[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float l = to_float(low[j].x[k]), h = to_float(high[j].x[k]);
        new_low[k] = l * cosine[k] - h * sine[k];
        new_high[k] = h * cosine[k] + l * sine[k];
      }
      T* target = x + static_cast<int64_t>(head + j * step) * a.D;
      store<N>(target, new_low);
      store<N>(target + half, new_high);
    }
  }
}

// Heads are shared out evenly over the passes of a block.
template <class T, int N>
void launch(const Operands<T>& operands, int64_t rows, cudaStream_t stream) {
  const int threads_per_head = operands.D / 2 / N;
  ASSERT(threads_per_head <= kLargestHead);
  const int passes = ceil_div(operands.H * threads_per_head, kThreads);
  const int threads = ceil_div(operands.H, passes) * threads_per_head;
  rope_kernel<T, N><<<static_cast<unsigned>(rows), threads, 0, stream>>>(operands);
  CUDA_LAUNCH_CHECK();
}

void rope(const Tensor& x, const Tensor& cos_sin, int64_t D, const TokenBatch& batch, float sign,
          cudaStream_t stream) {
  ASSERT(D > 0 && D % 2 == 0 && x.cols % D == 0 && x.rows == batch.n_rows && x.rows <= INT32_MAX);
  ASSERT(cos_sin.cols == D && cos_sin.dtype == DType::f32);
  if (x.n_elem() == 0) return;
  dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = kVector<T>;
    const Operands<T> operands{
        x.as<T>(),    cos_sin.as<float>(),          batch.positions,     x.ld, cos_sin.ld,
        cos_sin.rows, static_cast<int>(x.cols / D), static_cast<int>(D), sign};
    if (D / 2 % N == 0 && vectorizable(N, x) && vectorizable(kVector<float>, cos_sin)) {
      launch<T, N>(operands, x.rows, stream);
    } else {
      launch<T, 1>(operands, x.rows, stream);
    }
  });
}

}  // namespace

void rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D, const TokenBatch& batch,
                  cudaStream_t stream) {
  rope(x, cos_sin, D, batch, 1.0f, stream);
}

void rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D, const TokenBatch& batch,
                   cudaStream_t stream) {
  rope(dx, cos_sin, D, batch, -1.0f, stream);
}

}  // namespace utrain::cuda
