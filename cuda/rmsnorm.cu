// y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps) over groups of K columns
//   Zhang & Sennrich 2019, arXiv:1910.07467
//   x, y, h, dx, dy [N, G*K] T   rstd [N, G] float32   weight [1, K] T, shared by the groups
//   dweight [1, K] float32
//   forward: y =, rstd =, h =; y may be x, h may be x.
//   backward: dx = beta * dx + J' dy; beta = 0 does not read dx, and dx may then be dy.
//     dweight +=, by column_sums.cu
//   Requires K <= 16384: a group is read once and stays in registers. h and x * rstd are rounded to
//   T before they go on, as Hugging Face's modules do. Accumulates in float32.
//   CPU twin and oracle: src/cpu/rmsnorm.h
#include "cuda_check.h"
#include "ops.h"
#include "reduce.cuh"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kPerThread = 16;  // elements of a group that a thread holds
constexpr int kLargestBlock = 1024;
// Short groups, the heads of Qwen3: half a warp takes one, where a block would be mostly idle.
constexpr int kShortLanes = 16;
constexpr int kShortBlock = 256;

struct Groups {
  int64_t rows = 0;
  int G = 0, K = 0;
  int64_t count() const { return rows * G; }
};

// The group of this thread, and its place in it. K = 0 for threads past the last group: they read
// and write nothing, but take part in the sums.
struct Place {
  int64_t row = 0;
  int g = 0, lane = 0, lanes = 0, K = 0;
};

template <bool kShort>
__device__ Place find_place(const Groups& groups) {
  const unsigned lanes = kShort ? kShortLanes : blockDim.x;
  const unsigned group =
      kShort ? blockIdx.x * (kShortBlock / kShortLanes) + threadIdx.x / kShortLanes : blockIdx.x;
  const unsigned G = groups.G, row = group / G;
  return {row, static_cast<int>(group - row * G), static_cast<int>(threadIdx.x % lanes),
          static_cast<int>(lanes), row < groups.rows ? groups.K : 0};
}

// At most once in a kernel: nothing waits for the readers of `parts`.
template <bool kShort>
__device__ float group_sum(float x) {
  if constexpr (kShort) {
#pragma unroll
    for (int offset = kShortLanes / 2; offset > 0; offset /= 2) {
      x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
    return x;
  } else {
    __shared__ float parts[kLargestBlock / 32];
    const int lane = threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < blockDim.x / 32 ? parts[lane] : 0.0f);
  }
}

template <class T>
__device__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

template <class T>
struct Forward {
  T *h, *y;
  float* rstd;
  const T *x, *branch, *weight;
  int64_t ld_h, ld_y, ld_rstd, ld_x, ld_branch;
  float eps;
};

template <class T, int N, bool kShort, bool kResidual>
__global__ void __launch_bounds__(kShort ? kShortBlock : kLargestBlock)
    rmsnorm_forward_kernel(Forward<T> a, Groups groups) {
  constexpr int kItems = kPerThread / N;
  const Place at = find_place<kShort>(groups);
  const int64_t begin = static_cast<int64_t>(at.g) * groups.K;
  const T* x = a.x + at.row * a.ld_x + begin;
  const T* __restrict__ weight = a.weight;
  Elements<T, N> held[kItems], w[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int k = (at.lane + i * at.lanes) * N;
    if (k < at.K) held[i] = Elements<T, N>::load(x + k);
  }
  if constexpr (kResidual) {
    const T* branch = a.branch + at.row * a.ld_branch + begin;
    T* h = a.h + at.row * a.ld_h + begin;
    Elements<T, N> other[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int k = (at.lane + i * at.lanes) * N;
      if (k < at.K) other[i] = Elements<T, N>::load(branch + k);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int k = (at.lane + i * at.lanes) * N;
      if (k < at.K) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          held[i].x[j] = from_float<T>(to_float(held[i].x[j]) + to_float(other[i].x[j]));
        }
        held[i].store(h + k);
      }
    }
  }

  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int k = (at.lane + i * at.lanes) * N;
    if (k < at.K) {
      w[i] = Elements<T, N>::load(weight + k);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += to_float(held[i].x[j]) * to_float(held[i].x[j]);
    }
  }
  const float mean = group_sum<kShort>(sum) / static_cast<float>(groups.K);
  const float r = 1.0f / sqrtf(mean + a.eps);
  if (at.lane == 0 && at.K > 0) a.rstd[at.row * a.ld_rstd + at.g] = r;

  T* y = a.y + at.row * a.ld_y + begin;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int k = (at.lane + i * at.lanes) * N;
    if (k < at.K) {
      float out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        out[j] = rounded<T>(to_float(held[i].x[j]) * r) * to_float(w[i].x[j]);
      }
      store<N>(y + k, out);
    }
  }
}

template <class T>
struct Backward {
  T* dx;
  const T *dy, *x, *weight;
  const float* rstd;
  int64_t ld_dx, ld_dy, ld_x, ld_rstd;
  float beta;
};

template <class T, int N, bool kShort>
__global__ void __launch_bounds__(kShort ? kShortBlock : kLargestBlock)
    rmsnorm_backward_kernel(Backward<T> a, Groups groups) {
  constexpr int kItems = kPerThread / N;
  const Place at = find_place<kShort>(groups);
  const int64_t begin = static_cast<int64_t>(at.g) * groups.K;
  const T* x = a.x + at.row * a.ld_x + begin;
  const T* dy = a.dy + at.row * a.ld_dy + begin;
  T* dx = a.dx + at.row * a.ld_dx + begin;
  const T* __restrict__ weight = a.weight;
  const bool adds = a.beta != 0.0f;
  Elements<T, N> held_x[kItems], held_dy[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int k = (at.lane + i * at.lanes) * N;
    if (k < at.K) held_x[i] = Elements<T, N>::load(x + k);
    if (k < at.K) held_dy[i] = Elements<T, N>::load(dy + k);
  }
  const float r = at.K > 0 ? a.rstd[at.row * a.ld_rstd + at.g] : 0.0f;

  float g[kItems][N], sum = 0.0f;  // g = dy * weight
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int k = (at.lane + i * at.lanes) * N;
    if (k < at.K) {
      load<N>(g[i], weight + k);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        g[i][j] *= to_float(held_dy[i].x[j]);
        sum += g[i][j] * to_float(held_x[i].x[j]);
      }
    }
  }
  const float along_x = group_sum<kShort>(sum) * r * r / static_cast<float>(groups.K);

  // Late, so that it needs no registers above; other blocks hide the wait.
  Elements<T, N> before[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int k = (at.lane + i * at.lanes) * N;
    if (k < at.K && adds) before[i] = Elements<T, N>::load(dx + k);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int k = (at.lane + i * at.lanes) * N;
    if (k < at.K) {
      float out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float keep = adds ? a.beta * to_float(before[i].x[j]) : 0.0f;
        out[j] = keep + r * (g[i][j] - to_float(held_x[i].x[j]) * along_x);
      }
      store<N>(dx + k, out);
    }
  }
}

struct Launch {
  unsigned blocks, threads;
};

Launch short_launch(const Groups& groups) {
  return {static_cast<unsigned>(ceil_div<int64_t>(groups.count(), kShortBlock / kShortLanes)),
          kShortBlock};
}

Launch block_launch(const Groups& groups) {
  const int threads = ceil_div(ceil_div(groups.K, kPerThread), 32) * 32;
  return {static_cast<unsigned>(groups.count()), static_cast<unsigned>(threads)};
}

bool is_short(const Groups& groups) {
  return groups.K <= kShortLanes * kPerThread;
}

Groups groups_of(const Tensor& x, const Tensor& rstd, const Tensor& weight) {
  ASSERT(weight.rows == 1 && weight.cols > 0 && weight.cols <= kPerThread * kLargestBlock);
  ASSERT(x.cols == rstd.cols * weight.cols && rstd.rows == x.rows && rstd.dtype == DType::f32);
  ASSERT(weight.dtype == x.dtype && x.rows * rstd.cols <= INT32_MAX);
  return {x.rows, static_cast<int>(rstd.cols), static_cast<int>(weight.cols)};
}

bool like(const Tensor& y, const Tensor& x) {
  return y.rows == x.rows && y.cols == x.cols && y.dtype == x.dtype;
}

// One row: its stride says nothing.
Tensor without_stride(Tensor weight) {
  weight.ld = weight.cols;
  return weight;
}

template <class T, bool kResidual>
void launch_forward(const Forward<T>& operands, const Groups& groups, bool vectors,
                    cudaStream_t stream) {
  constexpr int N = kVector<T>;
  if (vectors && is_short(groups)) {
    const Launch launch = short_launch(groups);
    rmsnorm_forward_kernel<T, N, true, kResidual>
        <<<launch.blocks, launch.threads, 0, stream>>>(operands, groups);
  } else {
    const Launch launch = block_launch(groups);
    const auto kernel = vectors ? rmsnorm_forward_kernel<T, N, false, kResidual>
                                : rmsnorm_forward_kernel<T, 1, false, kResidual>;
    kernel<<<launch.blocks, launch.threads, 0, stream>>>(operands, groups);
  }
  CUDA_LAUNCH_CHECK();
}

}  // namespace

void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                     double eps, cudaStream_t stream) {
  const Groups groups = groups_of(x, rstd, weight);
  ASSERT(like(y, x));
  if (groups.count() == 0) return;
  dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    const Forward<T> operands{
        nullptr, y.as<T>(), rstd.as<float>(), x.as<T>(), nullptr, weight.as<T>(),
        0,       y.ld,      rstd.ld,          x.ld,      0,       static_cast<float>(eps)};
    const bool vectors = vectorizable(kVector<T>, y, x, without_stride(weight));
    launch_forward<T, false>(operands, groups, vectors, stream);
  });
}

void residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd, const Tensor& x,
                              const Tensor& branch, const Tensor& weight, double eps,
                              cudaStream_t stream) {
  const Groups groups = groups_of(x, rstd, weight);
  ASSERT(like(h, x) && like(y, x) && like(branch, x));
  if (groups.count() == 0) return;
  dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    const Forward<T> operands{
        h.as<T>(), y.as<T>(), rstd.as<float>(), x.as<T>(), branch.as<T>(), weight.as<T>(),
        h.ld,      y.ld,      rstd.ld,          x.ld,      branch.ld,      static_cast<float>(eps)};
    const bool vectors = vectorizable(kVector<T>, h, y, x, branch, without_stride(weight));
    launch_forward<T, true>(operands, groups, vectors, stream);
  });
}

void rmsnorm_backward(const Tensor& dx, const WeightGradient& dweight, const Tensor& dy,
                      const Tensor& x, const Tensor& rstd, const Tensor& weight, float beta,
                      cudaStream_t stream) {
  const Tensor &sums = dweight.sums, &scratch = dweight.scratch;
  const Groups groups = groups_of(x, rstd, weight);
  ASSERT(like(dx, x) && like(dy, x) && (beta == 0.0f || dx.data != dy.data));
  ASSERT(sums.empty() || (sums.rows == 1 && sums.cols == weight.cols));
  if (groups.count() == 0) return;
  // First, because dx may be dy.
  if (!sums.empty()) add_norm_column_sums(sums, dy, x, rstd, scratch, stream);
  dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = kVector<T>;
    const Backward<T> operands{dx.as<T>(), dy.as<T>(), x.as<T>(), weight.as<T>(), rstd.as<float>(),
                               dx.ld,      dy.ld,      x.ld,      rstd.ld,        beta};
    const bool vectors = vectorizable(N, dx, dy, x, without_stride(weight));
    if (vectors && is_short(groups)) {
      const Launch launch = short_launch(groups);
      rmsnorm_backward_kernel<T, N, true>
          <<<launch.blocks, launch.threads, 0, stream>>>(operands, groups);
    } else {
      const Launch launch = block_launch(groups);
      const auto kernel =
          vectors ? rmsnorm_backward_kernel<T, N, false> : rmsnorm_backward_kernel<T, 1, false>;
      kernel<<<launch.blocks, launch.threads, 0, stream>>>(operands, groups);
    }
    CUDA_LAUNCH_CHECK();
  });
}

}  // namespace utrain::cuda
