// AdamW in torch's order of operations           Loshchilov & Hutter 2017, arXiv:1711.05101
//   p, m, v, g [1, n] float32   state [1, kStepStates] float64, of clip(): read on the device, so
//   that no step waits for the host; not finite: nothing is done. p, m, v updated in place:
//     p *= 1 - lr * weight_decay;  m += (1 - beta1) * (g - m);  v = beta2 * v + (1 - beta2) * g^2
//     p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//   Scalars in double, then rounded once; elements in float32. CPU twin and oracle: src/cpu/adamw.h
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLargestGrid = 2048;  // every block computes the scalars once

// The step as every element needs it.
struct Scalars {
  float decay, step_size, root2, weight1, beta2, weight2, eps, grad_scale;
};

__device__ Scalars scalars_of(const double* state, const AdamW& options) {
  const double t = state[static_cast<int>(StepState::n_updates)];
  const double correction1 = 1.0 - pow(options.beta1, t);
  const double correction2 = 1.0 - pow(options.beta2, t);
  return {static_cast<float>(1.0 - options.lr * options.weight_decay),
          static_cast<float>(options.lr / correction1),
          static_cast<float>(sqrt(correction2)),
          static_cast<float>(1.0 - options.beta1),
          static_cast<float>(options.beta2),
          static_cast<float>(1.0 - options.beta2),
          static_cast<float>(options.eps),
          static_cast<float>(state[static_cast<int>(StepState::grad_scale)])};
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    adamw_update_kernel(float* p, float* m, float* v, const float* g, const double* state,
                        AdamW options, int64_t n) {
  if (state[static_cast<int>(StepState::is_finite)] == 0.0) return;
  __shared__ Scalars shared;
  if (threadIdx.x == 0) shared = scalars_of(state, options);
  __syncthreads();
  const Scalars s = shared;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * N;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N; i < n;
       i += stride) {
    float parameter[N], first[N], second[N], grad[N];
    load<N>(parameter, p + i);
    load<N>(first, m + i);
    load<N>(second, v + i);
    load<N>(grad, g + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float scaled = grad[j] * s.grad_scale;
      first[j] += s.weight1 * (scaled - first[j]);
      second[j] = s.beta2 * second[j] + s.weight2 * scaled * scaled;
      parameter[j] =
          parameter[j] * s.decay - s.step_size * first[j] / (sqrtf(second[j]) / s.root2 + s.eps);
    }
    store<N>(m + i, first);
    store<N>(v + i, second);
    store<N>(p + i, parameter);
  }
}

bool aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

}  // namespace

void adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
                  const Tensor& state, const AdamW& options, cudaStream_t stream) {
  const int64_t n = p.cols;
  for (const Tensor* x : {&p, &m, &v, &g}) ASSERT(x->rows == 1 && x->cols == n);
  ASSERT(state.rows == 1 && state.cols == kStepStates);
  if (n == 0) return;
  const bool vectors = n % 4 == 0 && aligned(p) && aligned(m) && aligned(v) && aligned(g);
  const auto kernel = vectors ? adamw_update_kernel<4> : adamw_update_kernel<1>;
  const int64_t blocks = ceil_div<int64_t>(n, kThreads * (vectors ? 4 : 1));
  kernel<<<static_cast<unsigned>(std::min(blocks, kLargestGrid)), kThreads, 0, stream>>>(
      p.as<float>(), m.as<float>(), v.as<float>(), g.as<float>(), state.as<double>(), options, n);
  CUDA_LAUNCH_CHECK();
}

}  // namespace utrain::cuda
