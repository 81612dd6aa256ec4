// y = x W' + bias + scaling * drop(x) A' B' on the adapter's slice of y
//   Hu et al. 2021, arXiv:2106.09685                                     CPU twin: src/cpu/linear.h
//   x, dx [N, in] T   y, dy [N, out] T   dA, dB, dW, dbias float32
//   xa [N, adapters * r] T, adapter i in columns [i r, i r + r)
//   forward:  y =, xa =
//   backward: dx =, dA +=, dB +=, dW +=, dbias +=; dx, dW, dbias: nothing where empty
//     dxa = scaling * dy B;  dB += scaling * dy' xa;  dA += dxa' drop(x)
//     dx = dy W + mask * (dxa A) / (1 - p);  dW += dy' x;  dbias += column sums of dy
//   The A of a group lie apart, so each adapter has its own products. Every product accumulates in
//   float32 and rounds to T as it is written; what an adapter adds to y or dx reads it again.
#include "cuda_check.h"
#include "linear.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void fill_rows_kernel(T* y, int64_t rows, int64_t cols, int64_t ld, const T* bias) {
  const int64_t n_elem = rows * cols, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n_elem;
       i += step) {
    y[i / cols * ld + i % cols] = bias[i % cols];
  }
}

// Every row of y = bias.
void fill_rows(const Tensor& y, const Tensor& bias, cudaStream_t stream) {
  if (y.n_elem() == 0) return;
  dispatch(y.dtype, [&](auto t) {
    using T = decltype(t);
    fill_rows_kernel<<<grid_size(y.n_elem(), kThreads), kThreads, 0, stream>>>(
        y.as<T>(), y.rows, y.cols, y.ld, bias.as<T>());
    CUDA_LAUNCH_CHECK();
  });
}

// y = x W' + bias
void frozen_forward(Blas& blas, const Tensor& y, const Tensor& x, const Linear& linear) {
  if (linear.bias.empty()) return matmul_nt(blas, y, x, linear.W);
  ASSERT(linear.bias.rows == 1 && linear.bias.cols == y.cols && linear.bias.dtype == y.dtype);
  if (takes_bias(y, linear.bias)) return matmul_nt_bias(blas, y, x, linear.W, linear.bias);
  fill_rows(y, linear.bias, blas.stream());
  matmul_nt(blas, y, x, linear.W, 1.0f, 1.0f);
}

// The scratch that holds drop(x), as wide as x.
Tensor dropout_scratch(const Tensor& x, const LinearContext& context) {
  const Tensor& scratch = context.dropped;
  ASSERT(scratch.rows >= x.rows && scratch.cols >= x.cols && scratch.dtype == x.dtype);
  return scratch.first_rows(x.rows).columns(0, x.cols);
}

// drop(x) of one adapter: x itself where p = 0.
Tensor dropped(const Tensor& x, uint32_t site, const LinearContext& context, cudaStream_t stream) {
  if (context.dropout.p == 0.0f) return x;
  const Tensor y = dropout_scratch(x, context);
  dropout_forward(y, x, site, context.dropout, context.batch, stream);
  return y;
}

void check_linear(const Tensor& y, const Tensor& x, const Tensor& xa, const Linear& linear) {
  const int64_t n_adapters = static_cast<int64_t>(linear.adapters.size());
  ASSERT(y.rows == x.rows && y.cols == linear.W.rows && x.cols == linear.W.cols);
  ASSERT(y.dtype == x.dtype && linear.W.dtype == x.dtype);
  ASSERT(n_adapters == 0 ||
         (linear.r > 0 && xa.rows == x.rows && xa.cols == n_adapters * linear.r));
  for (const LoraAdapter& adapter : linear.adapters) {
    ASSERT(adapter.A.rows == linear.r && adapter.A.cols == x.cols && adapter.B.cols == linear.r);
    ASSERT(adapter.row_begin >= 0 && adapter.row_begin + adapter.B.rows <= y.cols);
  }
}

}  // namespace

void linear_forward(Blas& blas, const Tensor& y, const Tensor& xa, const Tensor& x,
                    const Linear& linear, const LinearContext& context) {
  check_linear(y, x, xa, linear);
  frozen_forward(blas, y, x, linear);
  int64_t column = 0;
  for (const LoraAdapter& adapter : linear.adapters) {
    const Tensor xa_i = xa.columns(column, linear.r);
    const Tensor y_i = y.columns(adapter.row_begin, adapter.B.rows);
    matmul_nt(blas, xa_i, dropped(x, adapter.site, context, blas.stream()), adapter.A);
    matmul_nt(blas, y_i, xa_i, adapter.B, linear.scaling, 1.0f);
    column += linear.r;
  }
}

void linear_backward(Blas& blas, const Tensor& dx, const Tensor& dy, const Tensor& x,
                     const Tensor& xa, const Linear& linear, const LinearContext& context) {
  check_linear(dy, x, xa, linear);
  ASSERT(dx.empty() || (dx.rows == x.rows && dx.cols == x.cols && dx.dtype == x.dtype));
  if (!dx.empty()) matmul_nn(blas, dx, dy, linear.W);
  if (!linear.dW.empty()) matmul_tn(blas, linear.dW, dy, x, 1.0f, 1.0f);
  if (!linear.dbias.empty()) {
    add_column_sums(linear.dbias, dy, context.column_sums, blas.stream());
  }
  int64_t column = 0;
  for (const LoraAdapter& adapter : linear.adapters) {
    const Tensor dxa = context.dxa.first_rows(x.rows).columns(column, linear.r);
    const Tensor dy_i = dy.columns(adapter.row_begin, adapter.B.rows);
    matmul_nn(blas, dxa, dy_i, adapter.B, linear.scaling);
    matmul_tn(blas, adapter.dB, dy_i, xa.columns(column, linear.r), linear.scaling, 1.0f);
    matmul_tn(blas, adapter.dA, dxa, dropped(x, adapter.site, context, blas.stream()), 1.0f, 1.0f);
    column += linear.r;
    if (dx.empty()) continue;
    if (context.dropout.p == 0.0f) {
      matmul_nn(blas, dx, dxa, adapter.A, 1.0f, 1.0f);
      continue;
    }
    // drop(x) is done with: its scratch takes the gradient that goes back through the mask.
    const Tensor back = dropout_scratch(x, context);
    matmul_nn(blas, back, dxa, adapter.A);
    dropout_backward(dx, back, adapter.site, context.dropout, context.batch, blas.stream());
  }
}

}  // namespace utrain::cuda
