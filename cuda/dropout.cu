// Inverted dropout: factor 1 / (1 - p) where the element's word of Philox is at least p * 2^32,
// else 0.
//   x, y, dx, dy [N, cols] T. forward: y = mask o x; backward: dx += mask o dy. Requires 0 <= p
//   < 1. core/random.h says which word an element reads, by document and position: the mask is the
//   CPU's, bit for bit, and is made again wherever it is needed. One call of Philox serves 4
//   columns.           CPU twin: src/cpu/dropout.h
#include "core/random.h"
#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 8;  // of one thread: two calls of Philox

struct DropoutArguments {
  uint64_t key;
  uint32_t threshold, site;
  float scale;
  int64_t rows, cols, y_ld, x_ld;
  const int32_t *positions, *documents;
};

// y = mask o x, or y += mask o x. 1 thread = kColumns columns of a row; loads and stores of kN
// elements.
template <class T, int kN, bool kAdd>
__global__ void __launch_bounds__(kThreads) dropout_kernel(T* y, const T* x, DropoutArguments p) {
  const int64_t groups = ceil_div<int64_t>(p.cols, kColumns);
  const int64_t n_groups = p.rows * groups, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n_groups;
       i += step) {
    const int64_t n = i / groups, column = i % groups * kColumns;
    const uint32_t position = static_cast<uint32_t>(p.positions[n]),
                   document = static_cast<uint32_t>(p.documents[n]);
    float factors[kColumns];
#pragma unroll
    for (int k = 0; k < kColumns; k += 4) {
      const Philox words =
          philox(p.key, static_cast<uint32_t>((column + k) / 4), position, document, p.site);
#pragma unroll
      for (int j = 0; j < 4; ++j) factors[k + j] = words.x[j] >= p.threshold ? p.scale : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kColumns; k += kN) {
      if (column + k >= p.cols) break;
      float x_k[kN], y_k[kN];
      load(x_k, x + n * p.x_ld + column + k);
      T* target = y + n * p.y_ld + column + k;
      if constexpr (kAdd) load(y_k, target);
#pragma unroll
      for (int j = 0; j < kN; ++j)
        y_k[j] = kAdd ? y_k[j] + x_k[j] * factors[k + j] : x_k[j] * factors[k + j];
      store(target, y_k);
    }
  }
}

template <bool kAdd>
void apply_dropout(const Tensor& y, const Tensor& x, uint32_t site, const Dropout& dropout,
                   const TokenBatch& batch, cudaStream_t stream) {
  ASSERT(dropout.p >= 0.0f && dropout.p < 1.0f);
  ASSERT(y.rows == x.rows && y.cols == x.cols && y.dtype == x.dtype && batch.n_rows == x.rows);
  if (x.n_elem() == 0) return;
  const DropoutArguments arguments{dropout_key(dropout.seed, dropout.epoch),
                                   dropout_threshold(dropout.p),
                                   site,
                                   1.0f / (1.0f - dropout.p),
                                   x.rows,
                                   x.cols,
                                   y.ld,
                                   x.ld,
                                   batch.positions,
                                   batch.documents};
  const unsigned grid = grid_size(x.rows * ceil_div<int64_t>(x.cols, kColumns), kThreads);
  dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    if (vectorizable(kVector<T>, y, x)) {
      dropout_kernel<T, kVector<T>, kAdd>
          <<<grid, kThreads, 0, stream>>>(y.as<T>(), x.as<T>(), arguments);
    } else {
      dropout_kernel<T, 1, kAdd><<<grid, kThreads, 0, stream>>>(y.as<T>(), x.as<T>(), arguments);
    }
    CUDA_LAUNCH_CHECK();
  });
}

}  // namespace

void dropout_forward(const Tensor& y, const Tensor& x, uint32_t site, const Dropout& dropout,
                     const TokenBatch& batch, cudaStream_t stream) {
  apply_dropout<false>(y, x, site, dropout, batch, stream);
}

void dropout_backward(const Tensor& dx, const Tensor& dy, uint32_t site, const Dropout& dropout,
                      const TokenBatch& batch, cudaStream_t stream) {
  apply_dropout<true>(dx, dy, site, dropout, batch, stream);
}

}  // namespace utrain::cuda
