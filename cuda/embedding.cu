// x = table[tokens]
//   x, dx [N, C] T   table [V, C] T   dtable [V, C] float32   tokens, rows_by_token [N] int32
//   forward: x =.  backward: dtable[tokens] += dx; equal tokens follow each other in rows_by_token,
//   and one block adds the rows of a token, in row order, in float32.
//   Requires 0 <= token < V; a row whose token is outside becomes NaN, so that the step shows it
//   and reads nothing beyond the table; it adds nothing.  CPU twin and oracle: src/cpu/embedding.h
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

struct TokenRows {
  const int32_t *tokens, *rows;  // rows: sorted by token
  int64_t N, V;
  __device__ int32_t token(int64_t i) const { return tokens[rows[i]]; }
};

// Block i adds the rows of a token where its first one stands at place i of the order, else
// nothing.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(float* dtable, const T* dx, int64_t C, int64_t dtable_ld,
                              int64_t dx_ld, TokenRows order) {
  const int64_t first = blockIdx.x;
  const int32_t token = order.token(first);
  if (token < 0 || token >= order.V) return;
  if (first > 0 && order.token(first - 1) == token) return;
  int64_t end = first + 1;
  for (int n_same = kThreads; n_same == kThreads; end += n_same) {
    const int64_t i = end + threadIdx.x;
    n_same = __syncthreads_count(i < order.N && order.token(i) == token);
  }
  float* target = dtable + token * dtable_ld;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * N; c < C; c += kThreads * N) {
    float sum[N] = {};
#pragma unroll 4
    for (int64_t i = first; i < end; ++i) {
      float row[N];
      load<N>(row, dx + order.rows[i] * dx_ld + c);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += row[j];
    }
    float before[N];
    load<N>(before, target + c);
#pragma unroll
    for (int j = 0; j < N; ++j) before[j] += sum[j];
    store<N>(target + c, before);
  }
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

void embedding_backward(const Tensor& dtable, const Tensor& dx, const TokenBatch& batch,
                        cudaStream_t stream) {
  ASSERT(dx.rows == batch.n_rows && dx.cols == dtable.cols && dx.rows <= INT32_MAX);
  if (dx.n_elem() == 0) return;
  ASSERT(batch.rows_by_token != nullptr);
  const TokenRows order{batch.tokens, batch.rows_by_token, dx.rows, dtable.rows};
  dispatch(dx.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = kVector<T>;
    const auto kernel = vectorizable(N, dtable, dx) ? embedding_backward_kernel<T, N>
                                                    : embedding_backward_kernel<T, 1>;
    kernel<<<static_cast<unsigned>(dx.rows), kThreads, 0, stream>>>(
        dtable.as<float>(), dx.as<T>(), dx.cols, dtable.ld, dx.ld, order);
    CUDA_LAUNCH_CHECK();
  });
}

}  // namespace utrain::cuda
