// float, __nv_bfloat16 and __half in kernels: read and written as float, one element or a vector at
// a time.
//   load<N>, store<N>: N consecutive elements in accesses of 16 bytes (fewer where N elements are);
//   the address must be aligned to min(16, N * sizeof(T)). vectorizable() says whether tensors
//   allow it; else a kernel runs with N = 1. dispatch() turns a DType of the backend into a C++
//   type: dispatch(x.dtype, [&](auto t) { using T = decltype(t); ... })
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/tensor.h"

namespace utrain {

template <>
struct DTypeOf<__nv_bfloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<__half> {
  static constexpr DType value = DType::f16;
};

namespace cuda {

template <class F>
void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(__nv_bfloat16{});
    case DType::f16: return f(__half{});
    default: ASSERT(!"a dtype that the GPU computes in");
  }
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}

// Rounds to nearest even.
template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// Two elements with one conversion instruction.
__device__ inline void from_floats(float* y, float a, float b) {
  y[0] = a;
  y[1] = b;
}
__device__ inline void from_floats(__nv_bfloat16* y, float a, float b) {
  *reinterpret_cast<__nv_bfloat162*>(y) = __floats2bfloat162_rn(a, b);
}
__device__ inline void from_floats(__half* y, float a, float b) {
  *reinterpret_cast<__half2*>(y) = __floats2half2_rn(a, b);
}

// The unit of access: an integer type of this many bytes.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// A word to device memory, never to shared memory. The compiler takes an assignment of uint4 apart
// where it stands under a condition; this is always one instruction.
template <class Word>
__device__ inline void store_word(Word* target, Word word) {
  *target = word;
}
__device__ inline void store_word(uint4* target, uint4 word) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)),
               "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}

// N elements as they lie in memory.
template <class T, int N>
struct Elements {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T));
  static constexpr int kWordBytes = kBytes < 16 ? kBytes : 16;
  static constexpr int kWords = kBytes / kWordBytes;
  using Word = typename WordOf<kWordBytes>::type;
  alignas(kWordBytes) T x[N];

  __device__ static Elements load(const T* source) {
    Elements e;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      reinterpret_cast<Word*>(e.x)[i] = reinterpret_cast<const Word*>(source)[i];
    }
    return e;
  }
  __device__ void store(T* target) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      store_word(reinterpret_cast<Word*>(target) + i, reinterpret_cast<const Word*>(x)[i]);
    }
  }
};

template <int N, class T>
__device__ inline void load(float (&x)[N], const T* source) {
  const Elements<T, N> e = Elements<T, N>::load(source);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = to_float(e.x[i]);
}

template <int N, class T>
__device__ inline void store(T* target, const float (&x)[N]) {
  Elements<T, N> e;
  if constexpr (N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) from_floats(e.x + i, x[i], x[i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) e.x[i] = from_float<T>(x[i]);
  }
  e.store(target);
}

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Whether every row of x starts aligned and holds a whole number of vectors of n elements.
inline bool vectorizable(const Tensor& x, int n) {
  const int64_t bytes = std::min<int64_t>(16, n * size_of(x.dtype));
  return reinterpret_cast<uintptr_t>(x.data) % bytes == 0 && x.ld * size_of(x.dtype) % bytes == 0 &&
         x.cols % n == 0;
}
template <class... Tensors>
bool vectorizable(int n, const Tensors&... tensors) {
  return (vectorizable(tensors, n) && ...);
}

template <class I>
__host__ __device__ constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// Blocks of a grid-stride loop over n_items with items_per_block each: enough to fill any GPU,
// never above the limit.
inline unsigned grid_size(int64_t n_items, int64_t items_per_block) {
  constexpr int64_t largest = 1 << 16;
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(n_items, items_per_block), 1, largest));
}

}  // namespace cuda
}  // namespace utrain
