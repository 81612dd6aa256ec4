// The CUDA backend: backend.h on one GPU, everything on one stream in the order of the calls but
// copies of offloaded tensors, which have two of their own (copies.h). The host waits in
// download(), download_end(), copy_wait_host() and seconds() alone, and in upload() when its ring
// is full.
//   T is float32, bfloat16 or float16; adapters, gradients and optimizer state are float32, loss
//   sums float64. Every function hands over to the file of its operation, where shapes are checked.
//   Besides allocate() it holds, from its start, cuBLASLt's workspace and a few numbers.
#include <algorithm>

#include "backend.h"
#include "copies.h"
#include "cross_entropy.h"
#include "cuda_backend.h"
#include "cuda_check.h"
#include "gpu.h"
#include "handle.h"
#include "linear.h"
#include "matmul.h"
#include "ops.h"
#include "readback.h"
#include "upload_ring.h"

namespace utrain {
namespace {

int attribute(int device, cudaDeviceAttr name) {
  int value = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
  return value;
}
int multiprocessors_of(int device) {
  return attribute(device, cudaDevAttrMultiProcessorCount);
}
bool is_hopper(int device) {
  return attribute(device, cudaDevAttrComputeCapabilityMajor) == 9;
}

class CudaBackend : public Backend {
 public:
  // The device is current in this thread.
  CudaBackend(DType dtype, int device, const CudaOptions& options)
      : dtype_(dtype),
        owned_stream_(cuda::make_stream()),
        stream_(owned_stream_.get()),
        workspace_(cuda::make_device_memory(cuda::Blas::kWorkspaceBytes)),
        blas_(stream_, workspace_.get()),
        cross_entropy_(blas_),
        uploads_(stream_),
        small_downloads_(stream_),
        copies_(stream_),
        moments_(stream_),
        next_item_(cuda::make_device_memory(cuda::Hopper::kReserveBytes)),
        hopper_{multiprocessors_of(device), static_cast<int*>(next_item_.get())},
        attention_device_{stream_, options.hopper && is_hopper(device) ? &hopper_ : nullptr} {}
  ~CudaBackend() override { cudaDeviceSynchronize(); }

  std::string name() const override { return "cuda"; }
  DType dtype() const override { return dtype_; }
  DType trainable_dtype() const override { return DType::f32; }
  DType loss_dtype() const override { return DType::f64; }
  int64_t row_multiple() const override { return kCudaRowMultiple; }
  int64_t reserve_bytes() const override {
    static_assert(kCudaReserveBytes == cuda::Blas::kWorkspaceBytes +
                                           cuda::CrossEntropy::kReserveBytes +
                                           cuda::Hopper::kReserveBytes);
    return kCudaReserveBytes;
  }

  void* allocate(int64_t bytes) override {
    ASSERT(bytes >= 0);
    memory_.push_back(cuda::make_device_memory(bytes));
    return memory_.back().get();
  }
  std::shared_ptr<void> allocate_host(int64_t bytes) override { return cuda::make_pinned(bytes); }
  void upload(void* device, const void* host, int64_t bytes) override {
    uploads_.upload(device, host, bytes);
  }
  void download(void* host, const void* device, int64_t bytes) override {
    if (bytes > 0)
      CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }
  int64_t download_begin(const void* device, int64_t bytes) override {
    return small_downloads_.begin(device, bytes);
  }
  void download_end(void* host, int64_t ticket) override { small_downloads_.end(host, ticket); }
  int64_t copy_in_begin(void* device, const void* host, int64_t bytes) override {
    return copies_.in(device, host, bytes);
  }
  int64_t copy_out_begin(void* host, const void* device, int64_t bytes) override {
    return copies_.out(host, device, bytes);
  }
  void copy_wait(int64_t ticket) override { copies_.wait(ticket); }
  void copy_wait_host(int64_t ticket) override { copies_.wait_host(ticket); }
  int64_t moment() override { return moments_.record(); }
  double seconds(int64_t from, int64_t to) override { return moments_.seconds(from, to); }
  bool is_asynchronous() const override { return true; }
  cudaStream_t stream() const { return stream_; }
  void zero(const Tensor& x) override { cuda::zero(x, stream_); }
  void convert(const Tensor& y, const Tensor& x) override { cuda::convert(y, x, stream_); }

  void embedding_forward(const Tensor& x, const Tensor& table, const TokenBatch& batch) override {
    cuda::embedding_forward(x, table, batch, stream_);
  }
  void embedding_backward(const Tensor& dtable, const Tensor& dx,
                          const TokenBatch& batch) override {
    cuda::embedding_backward(dtable, dx, batch, stream_);
  }

  void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                       double eps) override {
    cuda::rmsnorm_forward(y, rstd, x, weight, eps, stream_);
  }
  void residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd,
                                const Tensor& x, const Tensor& branch, const Tensor& weight,
                                double eps) override {
    cuda::residual_rmsnorm_forward(h, y, rstd, x, branch, weight, eps, stream_);
  }
  void rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy, const Tensor& x,
                        const Tensor& rstd, const Tensor& weight, float beta,
                        const Tensor& column_sums) override {
    cuda::rmsnorm_backward(dx, {dweight, column_sums}, dy, x, rstd, weight, beta, stream_);
  }
  void residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch) override {
    cuda::residual_forward(h, x, branch, stream_);
  }

  void rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D,
                    const TokenBatch& batch) override {
    cuda::rope_forward(x, cos_sin, D, batch, stream_);
  }
  void rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D,
                     const TokenBatch& batch) override {
    cuda::rope_backward(dx, cos_sin, D, batch, stream_);
  }

  void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const TokenBatch& batch,
                         const AttentionShape& shape) override {
    cuda::attention_forward(out, lse, q, k, v, batch, shape, attention_device_);
  }
  void attention_backward(const Tensor& dqkv, const Tensor& delta, const Tensor& dout,
                          const Tensor& out, const Tensor& lse, const Tensor& qkv,
                          const TokenBatch& batch, const AttentionShape& shape) override {
    cuda::attention_backward(dqkv, delta, dout, {qkv, out, lse}, batch, shape, attention_device_);
  }

  void swiglu_forward(const Tensor& act, const Tensor& gate_up) override {
    cuda::swiglu_forward(act, gate_up, stream_);
  }
  void swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up) override {
    cuda::swiglu_backward(dgate_up, dact, gate_up, stream_);
  }

  void linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x, const Linear& linear,
                      const LinearContext& context) override {
    cuda::linear_forward(blas_, y, xa, x, linear, context);
  }
  void linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& xa,
                       const Linear& linear, const LinearContext& context) override {
    cuda::linear_backward(blas_, dx, dy, x, xa, linear, context);
  }

  void cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x, const Head& head,
                     const TokenBatch& batch, const LossFactor& dloss,
                     const LossScratch& scratch) override {
    cross_entropy_(loss, dx, x, head, batch, dloss, scratch);
  }

  void sum_of_squares(const Tensor& block_sums, const Tensor& x) override {
    cuda::sum_of_squares(block_sums, x, stream_);
  }
  void clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums, double max_grad_norm,
            const LossScaling& scaling) override {
    cuda::clip(state, loss, block_sums, max_grad_norm, scaling, stream_);
  }
  void adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
                    const Tensor& state, const AdamW& options) override {
    cuda::adamw_update(p, m, v, g, state, options, stream_);
  }
  void checksum(const Tensor& sum, const Tensor& x) override { cuda::checksum(sum, x, stream_); }

 private:
  DType dtype_;
  cuda::Stream owned_stream_;
  cudaStream_t stream_;
  cuda::DeviceMemory workspace_;
  cuda::Blas blas_;
  cuda::CrossEntropy cross_entropy_;
  cuda::UploadRing uploads_;
  cuda::SmallDownloads small_downloads_;
  cuda::Copies copies_;
  cuda::Moments moments_;
  cuda::DeviceMemory next_item_;
  cuda::Hopper hopper_;
  cuda::AttentionDevice attention_device_;
  std::vector<cuda::DeviceMemory> memory_;
};

}  // namespace

cudaStream_t cuda::stream_of(const Backend& backend) {
  const auto* of_a_gpu = dynamic_cast<const CudaBackend*>(&backend);
  ASSERT(of_a_gpu != nullptr);
  return of_a_gpu->stream();
}

std::unique_ptr<Backend> make_cuda_backend(DType dtype, int device, const CudaOptions& options) {
  if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16) {
    fail(ExitCode::usage, "model.dtype", fmt::format("{} on a GPU", name_of(dtype)),
         "set model.dtype = \"bfloat16\", \"float16\" or \"float32\"");
  }
  cuda::open_gpu(device);
  return std::make_unique<CudaBackend>(dtype, device, options);
}

}  // namespace utrain
