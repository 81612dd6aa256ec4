// block_sums[b] = sum of x^2 over elements [1024 b, 1024 b + 1024)
//   x [1, n] float32, n % 1024 == 0   block_sums [1, n / 1024] or [n / 1024, 1] float64 =
//   One warp a block, in double and in a fixed order.
// clip: norm = sqrt(sum of block_sums) / scale
//       grad_scale = min(1, max_grad_norm / (norm + 1e-6)) / scale
//   Pascanu et al. 2013, arXiv:1211.5063; the 1e-6 is that of torch's clip_grad_norm_. The scale is
//   that of the loss, and the next one as LossScaling says: Micikevicius et al. 2018,
//   arXiv:1710.03740
//   state [1, kStepStates] float64, indexed by StepState, updated in place
//   The blocks are added in an order that depends on their number alone, never on who computed
//   them.   CPU twin and oracle: src/cpu/grad_norm.h
#include "cuda_check.h"
#include "ops.h"
#include "reduce.cuh"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kSumBlock = 1024;
constexpr int kThreads = 256;
constexpr int kClipThreads = 1024;

template <int N>
__global__ void __launch_bounds__(kThreads)
    sum_of_squares_kernel(double* block_sums, const float* x, int64_t n_blocks) {
  constexpr int kItems = kSumBlock / 32 / N;
  const int lane = threadIdx.x % 32;
  const int64_t b = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (b >= n_blocks) return;
  Elements<float, N> held[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    held[i] = Elements<float, N>::load(x + b * kSumBlock + (i * 32 + lane) * N);
  }
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const double value = held[i].x[j];
      sum += value * value;
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) block_sums[b] = sum;
}

__device__ double& at(double* state, StepState i) {
  return state[static_cast<int>(i)];
}

// What was found of a step, and the scale that its loss had, decide about the next one.
__device__ void update_loss_scale(double* state, bool is_finite, bool overflowed,
                                  const LossScaling& scaling) {
  at(state, StepState::overflowed) = overflowed ? 1.0 : 0.0;
  at(state, StepState::n_overflows) += overflowed ? 1.0 : 0.0;
  double &good_steps = at(state, StepState::good_steps), &scale = at(state, StepState::loss_scale),
         &hysteresis = at(state, StepState::hysteresis_left);
  good_steps = is_finite ? good_steps + 1.0 : 0.0;
  if (overflowed && hysteresis > 1.0) {
    hysteresis -= 1.0;
  } else if (overflowed) {
    scale = fmax(scale / 2.0, scaling.min_scale);
  } else if (good_steps >= static_cast<double>(scaling.window)) {
    scale *= 2.0;
    hysteresis = static_cast<double>(scaling.hysteresis);
    good_steps = 0.0;
  }
}

__global__ void __launch_bounds__(kClipThreads)
    clip_kernel(double* state, const double* loss, const double* block_sums, int64_t n_blocks,
                double max_grad_norm, LossScaling scaling) {
  double sum = 0.0;
  for (int64_t b = threadIdx.x; b < n_blocks; b += kClipThreads) sum += block_sums[b];
  sum = block_sum<kClipThreads>(sum);
  if (threadIdx.x != 0) return;
  const double scale = scaling.dynamic ? at(state, StepState::loss_scale) : 1.0;
  const double norm = sqrt(sum) / scale;
  const bool loss_is_finite = isfinite(*loss), finite = isfinite(norm) && loss_is_finite;
  const double clipping = max_grad_norm / (norm + 1e-6);
  at(state, StepState::loss) = *loss;
  at(state, StepState::grad_norm) = norm;
  at(state, StepState::grad_scale) =
      (max_grad_norm > 0.0 && clipping < 1.0 ? clipping : 1.0) / scale;
  at(state, StepState::is_finite) = finite ? 1.0 : 0.0;
  at(state, StepState::n_updates) += finite ? 1.0 : 0.0;
  at(state, StepState::loss_scale) = scale;
  if (!scaling.dynamic) return;
  const bool overflowed = loss_is_finite && !finite && scale > scaling.min_scale;
  update_loss_scale(state, finite, overflowed, scaling);
}

}  // namespace

void sum_of_squares(const Tensor& block_sums, const Tensor& x, cudaStream_t stream) {
  const int64_t n_blocks = x.cols / kSumBlock;
  ASSERT(x.rows == 1 && x.cols % kSumBlock == 0);
  ASSERT(block_sums.n_elem() == n_blocks && (block_sums.rows == 1 || block_sums.ld == 1));
  ASSERT(n_blocks <= INT32_MAX);
  if (n_blocks == 0) return;
  const float* data = x.as<float>();
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  const auto kernel = aligned ? sum_of_squares_kernel<4> : sum_of_squares_kernel<1>;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(n_blocks, kThreads / 32));
  kernel<<<blocks, kThreads, 0, stream>>>(block_sums.as<double>(), data, n_blocks);
  CUDA_LAUNCH_CHECK();
}

void clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums, double max_grad_norm,
          const LossScaling& scaling, cudaStream_t stream) {
  ASSERT(state.rows == 1 && state.cols == kStepStates && loss.n_elem() == 1);
  ASSERT(block_sums.rows == 1 || block_sums.ld == 1);
  clip_kernel<<<1, kClipThreads, 0, stream>>>(state.as<double>(), loss.as<double>(),
                                              block_sums.as<double>(), block_sums.n_elem(),
                                              max_grad_norm, scaling);
  CUDA_LAUNCH_CHECK();
}

}  // namespace utrain::cuda
