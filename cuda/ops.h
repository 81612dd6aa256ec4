// Every launcher of the CUDA backend: the operations of backend.h with a stream. Contracts are told
// there; the file of an operation tells its kernels. Tensors are in device memory, of dtype
// float32, bfloat16 or float16 as backend.h says of T.
#pragma once

#include <cuda_runtime.h>

#include "backend.h"

namespace utrain::cuda {

void zero(const Tensor& x, cudaStream_t stream);
void convert(const Tensor& y, const Tensor& x, cudaStream_t stream);

void embedding_forward(const Tensor& x, const Tensor& table, const TokenBatch& batch,
                       cudaStream_t stream);
void embedding_backward(const Tensor& dtable, const Tensor& dx, const TokenBatch& batch,
                        cudaStream_t stream);

void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                     double eps, cudaStream_t stream);
void residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd, const Tensor& x,
                              const Tensor& branch, const Tensor& weight, double eps,
                              cudaStream_t stream);
// The gradient of a norm's weight, and what it is summed by way of, read only where it is wanted.
struct WeightGradient {
  const Tensor &sums, &scratch;
};
void rmsnorm_backward(const Tensor& dx, const WeightGradient& dweight, const Tensor& dy,
                      const Tensor& x, const Tensor& rstd, const Tensor& weight, float beta,
                      cudaStream_t stream);
void residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch, cudaStream_t stream);

void rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D, const TokenBatch& batch,
                  cudaStream_t stream);
void rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D, const TokenBatch& batch,
                   cudaStream_t stream);

// What its own attention kernels need of a GPU of Hopper (compute capability 9.0).
struct Hopper {
  static constexpr int64_t kReserveBytes = sizeof(int);
  int n_multiprocessors;
  int* next_item;  // in device memory; of one kernel at a time
};
// hopper: null on other GPUs.
struct AttentionDevice {
  cudaStream_t stream;
  const Hopper* hopper;
};
void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                       const Tensor& v, const TokenBatch& batch, const AttentionShape& shape,
                       const AttentionDevice& device);
// What attention_forward read and made.
struct AttentionPast {
  const Tensor &qkv, &out, &lse;
};
void attention_backward(const Tensor& dqkv, const Tensor& delta, const Tensor& dout,
                        const AttentionPast& past, const TokenBatch& batch,
                        const AttentionShape& shape, const AttentionDevice& device);

void swiglu_forward(const Tensor& act, const Tensor& gate_up, cudaStream_t stream);
void swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up,
                     cudaStream_t stream);

// y = drop(x) for one adapter's site; and dx += drop's mask o dxA, its gradient.
void dropout_forward(const Tensor& y, const Tensor& x, uint32_t site, const Dropout& dropout,
                     const TokenBatch& batch, cudaStream_t stream);
void dropout_backward(const Tensor& dx, const Tensor& dy, uint32_t site, const Dropout& dropout,
                      const TokenBatch& batch, cudaStream_t stream);

// sums [1, K] f32 += sum over the rows of dy [N, K]; or over the rows and groups of dy * x * rstd,
// dy, x [N, G*K], rstd [N, G]. scratch [kColumnParts, >= K] f32.
void add_column_sums(const Tensor& sums, const Tensor& dy, const Tensor& scratch,
                     cudaStream_t stream);
void add_norm_column_sums(const Tensor& sums, const Tensor& dy, const Tensor& x, const Tensor& rstd,
                          const Tensor& scratch, cudaStream_t stream);

void sum_of_squares(const Tensor& block_sums, const Tensor& x, cudaStream_t stream);
void clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums, double max_grad_norm,
          const LossScaling& scaling, cudaStream_t stream);
void adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
                  const Tensor& state, const AdamW& options, cudaStream_t stream);
void checksum(const Tensor& sum, const Tensor& x, cudaStream_t stream);

}  // namespace utrain::cuda
