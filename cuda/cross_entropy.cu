// loss += sum over targets of (log sum_v exp(logit_v) - logit_target), logits = x[row] W'
//   x, dx [N, C] T   W [V, C] T   dW [V, C] float32   loss [1, 1] float64
//   scratch: one chunk of logits [M, V] T, the rows of x it comes from [M, C] T, a loss for each row
//   g = dloss * (softmax - one hot);  dx = g W on rows with a target, 0 on the others;  dW +=
//   g' x[row], nothing where empty. No gradient at all where dx is empty.
//   Requires each target row once, and them inside x. A target outside of the vocabulary makes the
//   loss NaN, so that the fault shows. A block takes a row of logits and reads it twice: running
//   maximum and sum (Milakov & Gimelshein 2018, arXiv:1805.02867), then the gradient in its place,
//   from the end backwards, because the end is what the cache still holds. Computes in float32,
//   adds rows in double in a fixed order.   CPU twin and oracle: src/cpu/cross_entropy.h
#include "cross_entropy.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "cuda_check.h"
#include "ops.h"
#include "reduce.cuh"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kItems = 4;  // vectors a thread loads before it uses the first

// A row as vectors, and the fewer than two vectors of elements around them: any row of any stride
// has its aligned part.
template <class T>
struct Row {
  static constexpr int N = kVector<T>;
  T* data;
  int head, n_vectors, n_edge;

  __device__ Row(T* row, int V) : data(row) {
    const int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    head = min(V, (N - misaligned) % N);
    n_vectors = (V - head) / N;
    n_edge = V - n_vectors * N;
  }
  __device__ T* vector(int i) const { return data + head + i * N; }
  __device__ T* edge(int i) const { return data + (i < head ? i : i + n_vectors * N); }
};

// sum exp(x - max), both so far. It starts at a finite maximum, so that no difference is NaN.
struct Running {
  float max = -FLT_MAX, sum = 0.0f;

  template <int N>
  __device__ void add(const float (&x)[N]) {
    float largest = max;
#pragma unroll
    for (int j = 0; j < N; ++j) largest = fmaxf(largest, x[j]);
    sum *= __expf(max - largest);
    max = largest;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += __expf(x[j] - largest);
  }
};

template <class T>
__device__ Running reduce_row(const Row<T>& row) {
  constexpr int N = kVector<T>;
  Running running;
  for (int begin = threadIdx.x; begin < row.n_vectors; begin += kItems * kThreads) {
    Elements<T, N> held[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int v = begin + i * kThreads;
      if (v < row.n_vectors) held[i] = Elements<T, N>::load(row.vector(v));
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (begin + i * kThreads < row.n_vectors) {
        float x[N];
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = to_float(held[i].x[j]);
        running.add(x);
      }
    }
  }
  if (threadIdx.x < row.n_edge) {
    const float x[1] = {to_float(*row.edge(threadIdx.x))};
    running.add(x);
  }
  const float largest = block_max<kThreads>(running.max);
  return {largest, block_sum<kThreads>(running.sum * __expf(running.max - largest))};
}

// x = exp(x - max) * scale
template <class T>
__device__ void exp_row(const Row<T>& row, float max, float scale) {
  constexpr int N = kVector<T>;
  for (int begin = threadIdx.x; begin < row.n_vectors; begin += kItems * kThreads) {
    const int last = row.n_vectors - 1 - begin;
    Elements<T, N> held[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int v = last - i * kThreads;
      if (v >= 0) held[i] = Elements<T, N>::load(row.vector(v));
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int v = last - i * kThreads;
      if (v >= 0) {
        float x[N];
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = __expf(to_float(held[i].x[j]) - max) * scale;
        store<N>(row.vector(v), x);
      }
    }
  }
  if (threadIdx.x < row.n_edge) {
    T* x = row.edge(threadIdx.x);
    *x = from_float<T>(__expf(to_float(*x) - max) * scale);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_cross_entropy_kernel(double* row_loss, T* logits, int64_t ld, int V,
                                 const int32_t* targets, float dloss, bool want_gradient) {
  T* data = logits + blockIdx.x * ld;
  const int32_t target = targets[blockIdx.x];
  const bool inside = target >= 0 && target < V;
  const Row<T> row(data, V);
  const float target_logit = inside ? to_float(data[target]) : NAN;
  const Running all = reduce_row(row);
  if (threadIdx.x == 0) {
    // The difference first: it is exact where logits are large.
    row_loss[blockIdx.x] =
        log(static_cast<double>(all.sum)) + (static_cast<double>(all.max) - target_logit);
  }
  if (!want_gradient) return;
  exp_row(row, all.max, dloss / all.sum);
  __syncthreads();
  if (threadIdx.x == 0 && inside) {
    data[target] = from_float<T>((__expf(target_logit - all.max) / all.sum - 1.0f) * dloss);
  }
}

__global__ void __launch_bounds__(kThreads)
    add_loss_kernel(double* loss, const double* row_loss, int64_t M) {
  double sum = 0.0;
  for (int64_t m = threadIdx.x; m < M; m += kThreads) sum += row_loss[m];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *loss += sum;
}

__global__ void loss_factor_kernel(float* factor, const double* scale, double value) {
  factor[0] = static_cast<float>(value * *scale);
  factor[1] = 0.0f;
  factor[2] = 1.0f;
}

// U: an integer as wide as T, because nothing is computed.
template <class U, int N, bool kScatter>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(U* y, const U* x, int64_t ld_y, int64_t ld_x, int64_t C, const int32_t* rows) {
  const int64_t m = blockIdx.x, n = rows[m];
  const U* source = x + (kScatter ? m : n) * ld_x;
  U* target = y + (kScatter ? n : m) * ld_y;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * N; c < C; c += blockDim.x * N) {
    Elements<U, N>::load(source + c).store(target + c);
  }
}

template <class U, bool kScatter>
void launch_copy(const Tensor& y, const Tensor& x, const int32_t* rows, int64_t M,
                 cudaStream_t stream) {
  constexpr int N = kVector<U>;
  U* y_data = static_cast<U*>(y.data);
  const U* x_data = static_cast<const U*>(x.data);
  const int width = vectorizable(N, y, x) ? N : 1;
  const int64_t warps = ceil_div<int64_t>(ceil_div<int64_t>(x.cols, width), 32);
  const unsigned threads = static_cast<unsigned>(std::min<int64_t>(warps * 32, kThreads));
  const auto kernel =
      width == N ? copy_rows_kernel<U, N, kScatter> : copy_rows_kernel<U, 1, kScatter>;
  kernel<<<static_cast<unsigned>(M), threads, 0, stream>>>(y_data, x_data, y.ld, x.ld, x.cols,
                                                           rows);
  CUDA_LAUNCH_CHECK();
}

template <bool kScatter>
void copy_rows(const Tensor& y, const Tensor& x, const int32_t* rows, cudaStream_t stream) {
  const int64_t M = kScatter ? x.rows : y.rows;
  ASSERT(x.cols == y.cols && x.dtype == y.dtype && M <= INT32_MAX);
  if (M == 0 || x.cols == 0) return;
  switch (size_of(x.dtype)) {
    case 2: return launch_copy<uint16_t, kScatter>(y, x, rows, M, stream);
    case 4: return launch_copy<uint32_t, kScatter>(y, x, rows, M, stream);
    default: ASSERT(!"a dtype that the GPU computes in");
  }
}

// dx_rows [M, C] from and to the rows of a chunk.
void gather_rows(const Tensor& x_rows, const Tensor& x, const int32_t* rows, cudaStream_t stream) {
  copy_rows<false>(x_rows, x, rows, stream);
}
void scatter_rows(const Tensor& dx, const Tensor& dx_rows, const int32_t* rows,
                  cudaStream_t stream) {
  copy_rows<true>(dx, dx_rows, rows, stream);
}

// Logits become softmax_scale * (softmax - one hot), but where no gradient is wanted.
struct Softmax {
  double scale;
  bool want_gradient;
};

void softmax_cross_entropy(const Tensor& loss, const Tensor& row_loss, const Tensor& logits,
                           const int32_t* targets, const Softmax& softmax, cudaStream_t stream) {
  const int64_t M = logits.rows, V = logits.cols;
  ASSERT(loss.n_elem() == 1 && row_loss.rows == 1 && row_loss.cols >= M);
  ASSERT(M <= INT32_MAX && V <= INT32_MAX / 2);
  double* losses = row_loss.as<double>();
  dispatch(logits.dtype, [&](auto t) {
    using T = decltype(t);
    softmax_cross_entropy_kernel<T><<<static_cast<unsigned>(M), kThreads, 0, stream>>>(
        losses, logits.as<T>(), logits.ld, static_cast<int>(V), targets,
        static_cast<float>(softmax.scale), softmax.want_gradient);
    CUDA_LAUNCH_CHECK();
  });
  add_loss_kernel<<<1, kThreads, 0, stream>>>(loss.as<double>(), losses, M);
  CUDA_LAUNCH_CHECK();
}

// dW += alpha g' x_rows and x_rows = alpha g W, alpha a number or on the device.
template <class Alpha>
void gradient_products(Blas& blas, const Tensor& x_rows, const Tensor& g, const Head& head,
                       Alpha alpha) {
  if (!head.dW.empty()) matmul_tn(blas, head.dW, g, x_rows, alpha, 1.0f);
  matmul_nn(blas, x_rows, g, head.W, alpha, 0.0f);
}

}  // namespace

CrossEntropy::CrossEntropy(Blas& blas)
    : blas_(blas),
      factor_memory_(make_device_memory(kReserveBytes)),
      factor_(make_tensor(factor_memory_.get(), DType::f32, 1, 3)) {}

void CrossEntropy::operator()(const Tensor& loss, const Tensor& dx, const Tensor& x,
                              const Head& head, const TokenBatch& batch, const LossFactor& dloss,
                              const LossScratch& scratch) {
  const Tensor &W = head.W, &dW = head.dW;
  const int64_t M = batch.n_targets, C = x.cols, V = W.rows, chunk = scratch.logits.rows;
  ASSERT(x.rows == batch.n_rows && W.cols == C && scratch.logits.cols == V);
  ASSERT(M == 0 || (chunk > 0 && scratch.x_rows.rows >= chunk && scratch.x_rows.cols == C));
  ASSERT(dx.empty() || (dx.rows == x.rows && dx.cols == C && dx.dtype == x.dtype));
  ASSERT(dW.empty() || (dW.rows == V && dW.cols == C));
  ASSERT(dloss.scale.empty() || dloss.scale.n_elem() == 1);
  cudaStream_t stream = blas_.stream();
  // dloss may be small: it scales the products, so that float16 keeps softmax - one hot, which is
  // blown up besides so that small probabilities do not vanish.
  const Softmax softmax{x.dtype == DType::f16 ? 1024.0 : 1.0, !dx.empty()};
  const double alpha = dloss.value / softmax.scale;
  const bool on_device = softmax.want_gradient && !dloss.scale.empty();
  if (on_device) {
    loss_factor_kernel<<<1, 1, 0, stream>>>(factor_.as<float>(), dloss.scale.as<double>(), alpha);
    CUDA_LAUNCH_CHECK();
  }
  if (softmax.want_gradient) zero(dx, stream);
  for (int64_t begin = 0; begin < M; begin += chunk) {
    const int64_t n_rows = std::min(chunk, M - begin);
    const int32_t* rows = batch.target_rows + begin;
    const Tensor x_rows = scratch.x_rows.first_rows(n_rows),
                 logits = scratch.logits.first_rows(n_rows);
    gather_rows(x_rows, x, rows, stream);
    matmul_nt(blas_, logits, x_rows, W);
    softmax_cross_entropy(loss, scratch.losses, logits, batch.targets + begin, softmax, stream);
    if (!softmax.want_gradient) continue;
    if (on_device) {
      gradient_products(blas_, x_rows, logits, head, DeviceFactor{factor_.as<float>()});
    } else {
      gradient_products(blas_, x_rows, logits, head, static_cast<float>(alpha));
    }
    scatter_rows(dx, x_rows, rows, stream);
  }
}

}  // namespace utrain::cuda
