// x = table[tokens]
//   x [N, C] T   table [V, C] T   tokens [N] int32
//   forward: x =. The table is frozen, so there is no backward. Moves values, computes nothing.
//   Requires 0 <= token < V; a row whose token is outside becomes NaN, so that the step shows it
//   and reads nothing beyond the table. CPU twin: src/cpu/embedding.h
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;

// All bits set: NaN in every floating-point type.
template <class Word>
__device__ Word not_a_number();
template <>
__device__ uint16_t not_a_number<uint16_t>() {
  return 0xffffu;
}
template <>
__device__ uint32_t not_a_number<uint32_t>() {
  return 0xffffffffu;
}
template <>
__device__ uint4 not_a_number<uint4>() {
  return make_uint4(0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu);
}

// 1 thread = one word; strides and width in words
template <class Word>
__global__ void __launch_bounds__(kThreads)
    embedding_forward_kernel(Word* x, const Word* table, const int32_t* tokens, int64_t N,
                             int64_t width, int64_t V, int64_t x_ld, int64_t table_ld) {
  const int64_t n_words = N * width, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n_words;
       i += step) {
    const int64_t n = i / width, column = i % width, token = tokens[n];
    const bool is_inside = token >= 0 && token < V;
    x[n * x_ld + column] = is_inside ? table[token * table_ld + column] : not_a_number<Word>();
  }
}

template <class Word>
void launch(const Tensor& x, const Tensor& table, const int32_t* tokens, cudaStream_t stream) {
  const int64_t n_elem = static_cast<int64_t>(sizeof(Word)) / size_of(x.dtype);  // of a word
  const int64_t width = x.cols / n_elem;
  embedding_forward_kernel<Word><<<grid_size(x.rows * width, kThreads), kThreads, 0, stream>>>(
      static_cast<Word*>(x.data), static_cast<const Word*>(table.data), tokens, x.rows, width,
      table.rows, x.ld / n_elem, table.ld / n_elem);
  CUDA_LAUNCH_CHECK();
}

}  // namespace

void embedding_forward(const Tensor& x, const Tensor& table, const TokenBatch& batch,
                       cudaStream_t stream) {
  ASSERT(x.rows == batch.n_rows && x.cols == table.cols && x.dtype == table.dtype);
  if (x.n_elem() == 0) return;
  if (vectorizable(static_cast<int>(16 / size_of(x.dtype)), x, table)) {
    launch<uint4>(x, table, batch.tokens, stream);
  } else if (size_of(x.dtype) == 4) {
    launch<uint32_t>(x, table, batch.tokens, stream);
  } else {
    ASSERT(size_of(x.dtype) == 2);
    launch<uint16_t>(x, table, batch.tokens, stream);
  }
}

}  // namespace utrain::cuda
