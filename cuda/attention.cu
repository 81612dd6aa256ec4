// Causal attention inside each document: who computes it, and delta = sum(dout * out)
//   attention_{forward,dq,dkdv}_wgmma.cu          Hopper: bfloat16 and float16, D 64 and 128,
//                                                 aligned rows
//   attention_forward.cu, attention_backward.cu   the same on tensor cores of other GPUs
//   attention_fma.cu                              everything else
//   lse and delta [N, Hq] are float32.                         CPU twin: src/cpu/attention.h
#include "attention.cuh"
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

// One warp a row and head; a lane takes kElements neighbours at a time.
constexpr int kThreads = 256, kWarps = kThreads / 32;

template <class T, int kElements>
__global__ void __launch_bounds__(kThreads)
    attention_delta_kernel(float* delta, int64_t ld_delta, const T* dout, int64_t ld_dout,
                           const T* out, int64_t ld_out, int64_t N, int Hq, int D) {
  const int lane = threadIdx.x % 32;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; i < N * Hq;
       i += int64_t{gridDim.x} * kWarps) {
    const int64_t n = i / Hq, h = i % Hq;
    float sum = 0.0f;
    for (int d = lane * kElements; d < D; d += 32 * kElements) {
      float a[kElements], b[kElements];
      load(a, dout + n * ld_dout + h * D + d);
      load(b, out + n * ld_out + h * D + d);
#pragma unroll
      for (int e = 0; e < kElements; ++e) sum = fmaf(a[e], b[e], sum);
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (lane == 0) delta[n * ld_delta + h] = sum;
  }
}

Visibility visibility_of(const TokenBatch& batch, const AttentionShape& shape) {
  const int64_t N = batch.n_rows, window = shape.window == 0 ? N : std::min(shape.window, N);
  ASSERT(N < int64_t{1} << 30);
  return {batch.begin, batch.end, static_cast<int>(N), static_cast<int>(window)};
}

void check_shape(const AttentionShape& shape) {
  ASSERT(shape.D > 0 && shape.D <= kMaxHeadDim && shape.Hkv > 0 && shape.Hq % shape.Hkv == 0);
  ASSERT(shape.scale > 0.0 && shape.window >= 0);
}

template <class T, class... Tensors>
bool tensor_cores_take(int64_t D, const Tensors&... tensors) {
  return sizeof(T) == 2 && (D == 64 || D == 128) && vectorizable(8, tensors...);
}

}  // namespace

void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                       const Tensor& v, const TokenBatch& batch, const AttentionShape& shape,
                       const AttentionDevice& device) {
  const cudaStream_t stream = device.stream;
  const int64_t N = batch.n_rows, Hq = shape.Hq, Hkv = shape.Hkv, D = shape.D;
  check_shape(shape);
  ASSERT(out.rows == N && q.rows == N && k.rows == N && v.rows == N && lse.rows == N);
  ASSERT(out.cols == Hq * D && q.cols == Hq * D && k.cols == Hkv * D && v.cols == Hkv * D &&
         lse.cols == Hq);
  if (N == 0) return;
  dispatch(q.dtype, [&](auto t) {
    using T = decltype(t);
    const ForwardOperands<T> x{.q = q.as<T>(),
                               .k = k.as<T>(),
                               .v = v.as<T>(),
                               .out = out.as<T>(),
                               .lse = lse.as<float>(),
                               .ld_q = q.ld,
                               .ld_k = k.ld,
                               .ld_v = v.ld,
                               .ld_out = out.ld,
                               .ld_lse = lse.ld,
                               .visibility = visibility_of(batch, shape),
                               .Hq = static_cast<int>(Hq),
                               .Hkv = static_cast<int>(Hkv),
                               .D = static_cast<int>(D),
                               .scale = static_cast<float>(shape.scale)};
    if constexpr (sizeof(T) == 2) {
      if (tensor_cores_take<T>(D, out, q, k, v)) {
        if (device.hopper == nullptr) return attention_forward_mma(x, stream);
        return attention_forward_wgmma(x, *device.hopper, stream);
      }
    }
    attention_forward_fma(x, stream);
  });
}

void attention_backward(const Tensor& dqkv, const Tensor& delta, const Tensor& dout,
                        const AttentionPast& past, const TokenBatch& batch,
                        const AttentionShape& shape, const AttentionDevice& device) {
  const Tensor &qkv = past.qkv, &out = past.out, &lse = past.lse;
  const cudaStream_t stream = device.stream;
  const int64_t N = batch.n_rows, Hq = shape.Hq, Hkv = shape.Hkv, D = shape.D;
  check_shape(shape);
  ASSERT(dqkv.rows == N && qkv.rows == N && dout.rows == N && out.rows == N && lse.rows == N &&
         delta.rows == N);
  ASSERT(qkv.cols == (Hq + 2 * Hkv) * D && dqkv.cols == qkv.cols && dout.cols == Hq * D &&
         out.cols == Hq * D);
  ASSERT(lse.cols == Hq && delta.cols == Hq);
  if (N == 0) return;
  dispatch(qkv.dtype, [&](auto t) {
    using T = decltype(t);
    const T* q = qkv.as<T>();
    T* dq = dqkv.as<T>();
    const BackwardOperands<T> x{.q = q,
                                .k = q + Hq * D,
                                .v = q + (Hq + Hkv) * D,
                                .dout = dout.as<T>(),
                                .lse = lse.as<float>(),
                                .delta = delta.as<float>(),
                                .dq = dq,
                                .dk = dq + Hq * D,
                                .dv = dq + (Hq + Hkv) * D,
                                .ld_qkv = qkv.ld,
                                .ld_dqkv = dqkv.ld,
                                .ld_dout = dout.ld,
                                .ld_lse = lse.ld,
                                .ld_delta = delta.ld,
                                .visibility = visibility_of(batch, shape),
                                .Hq = static_cast<int>(Hq),
                                .Hkv = static_cast<int>(Hkv),
                                .D = static_cast<int>(D),
                                .scale = static_cast<float>(shape.scale)};
    const bool pairs = D % 2 == 0 && vectorizable(2, dout, out);
    const auto delta_kernel = pairs ? attention_delta_kernel<T, 2> : attention_delta_kernel<T, 1>;
    const dim3 grid(grid_size(N * Hq, kWarps));
    delta_kernel<<<grid, kThreads, 0, stream>>>(delta.as<float>(), delta.ld, dout.as<T>(), dout.ld,
                                                out.as<T>(), out.ld, N, x.Hq, x.D);
    CUDA_LAUNCH_CHECK();
    if constexpr (sizeof(T) == 2) {
      if (tensor_cores_take<T>(D, dqkv, dout, qkv)) {
        if (device.hopper == nullptr) return attention_backward_mma(x, stream);
        attention_dq_wgmma(x, *device.hopper, stream);
        return attention_dkdv_wgmma(x, stream);
      }
    }
    attention_backward_fma(x, stream);
  });
}

}  // namespace utrain::cuda
