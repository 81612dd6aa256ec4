// act = silu(gate) * up, silu(x) = x * sigmoid(x)             Shazeer 2020, arXiv:2002.05202
//   gate_up, dgate_up [N, 2F] T, gate first   act, dact [N, F] T
//   forward: act =. backward: dgate_up =; it may be gate_up (in place).
//   Computes in float32, rounds to T once.   CPU twin and oracle: src/cpu/swiglu.h
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 2;  // rows a thread takes at once: their loads are in flight together
constexpr int64_t kLargestGridY = 65535;

// For narrow types the fast exp and division are exact enough by far.
template <class T>
__device__ float sigmoid(float x) {
  if constexpr (sizeof(T) == 4) {
    return 1.0f / (1.0f + expf(-x));
  } else {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  }
}

template <class T>
struct Operands {
  T *act, *dgate_up;  // what is written: one of the two
  const T *gate_up, *dact;
  int64_t ld_act, ld_dgate_up, ld_gate_up, ld_dact, rows, F;
};

template <class T, int N>
__global__ void swiglu_forward_kernel(Operands<T> a) {
  const int64_t f = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (f >= a.F) return;
  for (int64_t n = static_cast<int64_t>(blockIdx.y) * kRows; n < a.rows; n += gridDim.y * kRows) {
    Elements<T, N> gate[kRows], up[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (n + i >= a.rows) break;
      const T* source = a.gate_up + (n + i) * a.ld_gate_up + f;
      gate[i] = Elements<T, N>::load(source);
      up[i] = Elements<T, N>::load(source + a.F);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (n + i >= a.rows) break;
      float act[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float g = to_float(gate[i].x[j]);
        act[j] = g * sigmoid<T>(g) * to_float(up[i].x[j]);
      }
      store<N>(a.act + (n + i) * a.ld_act + f, act);
    }
  }
}

template <class T, int N>
__global__ void swiglu_backward_kernel(Operands<T> a) {
  const int64_t f = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (f >= a.F) return;
  for (int64_t n = static_cast<int64_t>(blockIdx.y) * kRows; n < a.rows; n += gridDim.y * kRows) {
    Elements<T, N> gate[kRows], up[kRows], dact[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (n + i >= a.rows) break;
      const T* source = a.gate_up + (n + i) * a.ld_gate_up + f;
      gate[i] = Elements<T, N>::load(source);
      up[i] = Elements<T, N>::load(source + a.F);
      dact[i] = Elements<T, N>::load(a.dact + (n + i) * a.ld_dact + f);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (n + i >= a.rows) break;
      float dgate[N], dup[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float g = to_float(gate[i].x[j]), d = to_float(dact[i].x[j]);
        const float s = sigmoid<T>(g);
        dgate[j] = d * to_float(up[i].x[j]) * s * (1.0f + g * (1.0f - s));
        dup[j] = d * g * s;
      }
      T* target = a.dgate_up + (n + i) * a.ld_dgate_up + f;
      store<N>(target, dgate);
      store<N>(target + a.F, dup);
    }
  }
}

template <class T>
dim3 grid_of(const Operands<T>& operands, int N) {
  return {static_cast<unsigned>(ceil_div<int64_t>(operands.F, kThreads * N)),
          static_cast<unsigned>(std::min(ceil_div<int64_t>(operands.rows, kRows), kLargestGridY))};
}

bool is(const Tensor& x, int64_t rows, int64_t cols, DType dtype) {
  return x.rows == rows && x.cols == cols && x.dtype == dtype;
}

}  // namespace

void swiglu_forward(const Tensor& act, const Tensor& gate_up, cudaStream_t stream) {
  const int64_t rows = act.rows, F = act.cols;
  ASSERT(is(gate_up, rows, 2 * F, act.dtype));
  if (act.n_elem() == 0) return;
  dispatch(act.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = kVector<T>;
    const Operands<T> operands{
        act.as<T>(), nullptr, gate_up.as<T>(), nullptr, act.ld, 0, gate_up.ld, 0, rows, F};
    if (vectorizable(N, act, gate_up)) {
      swiglu_forward_kernel<T, N><<<grid_of(operands, N), kThreads, 0, stream>>>(operands);
    } else {
      swiglu_forward_kernel<T, 1><<<grid_of(operands, 1), kThreads, 0, stream>>>(operands);
    }
    CUDA_LAUNCH_CHECK();
  });
}

void swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up,
                     cudaStream_t stream) {
  const int64_t rows = dact.rows, F = dact.cols;
  ASSERT(is(gate_up, rows, 2 * F, dact.dtype) && is(dgate_up, rows, 2 * F, dact.dtype));
  if (dact.n_elem() == 0) return;
  dispatch(dact.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = kVector<T>;
    const Operands<T> operands{nullptr,     dgate_up.as<T>(), gate_up.as<T>(), dact.as<T>(), 0,
                               dgate_up.ld, gate_up.ld,       dact.ld,         rows,         F};
    if (vectorizable(N, dgate_up, dact, gate_up)) {
      swiglu_backward_kernel<T, N><<<grid_of(operands, N), kThreads, 0, stream>>>(operands);
    } else {
      swiglu_backward_kernel<T, 1><<<grid_of(operands, 1), kThreads, 0, stream>>>(operands);
    }
    CUDA_LAUNCH_CHECK();
  });
}

}  // namespace utrain::cuda
