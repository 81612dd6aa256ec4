#include "cpu/rounding_backend.h"

#include <vector>

#include "core/convert.h"

namespace utrain {
namespace {

class RoundingBackend : public Backend {
 public:
  RoundingBackend(std::unique_ptr<Backend> inner, DType dtype)
      : inner_(std::move(inner)), rounds_to_(dtype) {
    ASSERT(inner_->dtype() == DType::f32 && (dtype == DType::f16 || dtype == DType::bf16));
  }

  std::string name() const override {
    return fmt::format("{}, {} emulated", inner_->name(), name_of(rounds_to_));
  }
  DType dtype() const override { return inner_->dtype(); }
  DType rounds_to() const override { return rounds_to_; }
  DType trainable_dtype() const override { return inner_->trainable_dtype(); }
  DType loss_dtype() const override { return inner_->loss_dtype(); }
  int64_t reserve_bytes() const override { return inner_->reserve_bytes(); }

  void* allocate(int64_t bytes) override { return inner_->allocate(bytes); }
  std::shared_ptr<void> allocate_host(int64_t bytes) override {
    return inner_->allocate_host(bytes);
  }
  void upload(void* device, const void* host, int64_t bytes) override {
    inner_->upload(device, host, bytes);
  }
  void download(void* host, const void* device, int64_t bytes) override {
    inner_->download(host, device, bytes);
  }
  int64_t download_begin(const void* device, int64_t bytes) override {
    return inner_->download_begin(device, bytes);
  }
  void download_end(void* host, int64_t ticket) override { inner_->download_end(host, ticket); }
  int64_t copy_in_begin(void* device, const void* host, int64_t bytes) override {
    return inner_->copy_in_begin(device, host, bytes);
  }
  int64_t copy_out_begin(void* host, const void* device, int64_t bytes) override {
    return inner_->copy_out_begin(host, device, bytes);
  }
  void copy_wait(int64_t ticket) override { inner_->copy_wait(ticket); }
  void copy_wait_host(int64_t ticket) override { inner_->copy_wait_host(ticket); }
  int64_t moment() override { return inner_->moment(); }
  double seconds(int64_t from, int64_t to) override { return inner_->seconds(from, to); }
  bool is_asynchronous() const override { return inner_->is_asynchronous(); }
  void zero(const Tensor& x) override { inner_->zero(x); }
  void convert(const Tensor& y, const Tensor& x) override {
    inner_->convert(y, x);
    round(y);
  }

  void embedding_forward(const Tensor& x, const Tensor& table, const TokenBatch& batch) override {
    inner_->embedding_forward(x, table, batch);
    round(x);
  }
  void embedding_backward(const Tensor& dtable, const Tensor& dx,
                          const TokenBatch& batch) override {
    inner_->embedding_backward(dtable, dx, batch);
  }

  void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                       double eps) override {
    inner_->rmsnorm_forward(y, rstd, x, weight, eps);
    round(y);
  }
  // The norm is that of the rounded h.
  void residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd,
                                const Tensor& x, const Tensor& branch, const Tensor& weight,
                                double eps) override {
    residual_forward(h, x, branch);
    rmsnorm_forward(y, rstd, h, weight, eps);
  }
  void rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy, const Tensor& x,
                        const Tensor& rstd, const Tensor& weight, float beta,
                        const Tensor& column_sums) override {
    inner_->rmsnorm_backward(dx, dweight, dy, x, rstd, weight, beta, column_sums);
    round(dx);
  }
  void residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch) override {
    inner_->residual_forward(h, x, branch);
    round(h);
  }

  void rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D,
                    const TokenBatch& batch) override {
    inner_->rope_forward(x, cos_sin, D, batch);
    round(x);
  }
  void rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D,
                     const TokenBatch& batch) override {
    inner_->rope_backward(dx, cos_sin, D, batch);
    round(dx);
  }

  void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const TokenBatch& batch,
                         const AttentionShape& shape) override {
    inner_->attention_forward(out, lse, q, k, v, batch, shape);
    round(out);
  }
  void attention_backward(const Tensor& dqkv, const Tensor& delta, const Tensor& dout,
                          const Tensor& out, const Tensor& lse, const Tensor& qkv,
                          const TokenBatch& batch, const AttentionShape& shape) override {
    inner_->attention_backward(dqkv, delta, dout, out, lse, qkv, batch, shape);
    round(dqkv);
  }

  void swiglu_forward(const Tensor& act, const Tensor& gate_up) override {
    inner_->swiglu_forward(act, gate_up);
    round(act);
  }
  void swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up) override {
    inner_->swiglu_backward(dgate_up, dact, gate_up);
    round(dgate_up);
  }

  void linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x, const Linear& linear,
                      const LinearContext& context) override {
    inner_->linear_forward(y, xa, x, linear, context);
    round(y);
    round(xa);
  }
  void linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& xa,
                       const Linear& linear, const LinearContext& context) override {
    inner_->linear_backward(dx, dy, x, xa, linear, context);
    round(dx);
  }

  void cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x, const Head& head,
                     const TokenBatch& batch, const LossFactor& dloss,
                     const LossScratch& scratch) override {
    inner_->cross_entropy(loss, dx, x, head, batch, dloss, scratch);
    round(dx);
  }

  void sum_of_squares(const Tensor& block_sums, const Tensor& x) override {
    inner_->sum_of_squares(block_sums, x);
  }
  void clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums, double max_grad_norm,
            const LossScaling& scaling) override {
    inner_->clip(state, loss, block_sums, max_grad_norm, scaling);
  }
  void adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
                    const Tensor& state, const AdamW& options) override {
    inner_->adamw_update(p, m, v, g, state, options);
  }
  void checksum(const Tensor& sum, const Tensor& x) override { inner_->checksum(sum, x); }

 private:
  // Nothing where x is empty or float32 is not what it holds.
  void round(const Tensor& x) const {
    if (x.empty() || x.dtype != DType::f32) return;
#pragma omp parallel
    {
      std::vector<uint16_t> narrow(static_cast<size_t>(x.cols));
#pragma omp for schedule(static)
      for (int64_t n = 0; n < x.rows; ++n) {
        float* row = x.as<float>() + n * x.ld;
        from_float(rounds_to_, row, x.cols, narrow.data());
        to_float(rounds_to_, narrow.data(), x.cols, row);
      }
    }
  }

  std::unique_ptr<Backend> inner_;
  DType rounds_to_;
};

}  // namespace

std::unique_ptr<Backend> make_rounding_backend(std::unique_ptr<Backend> inner, DType dtype) {
  return std::make_unique<RoundingBackend>(std::move(inner), dtype);
}

}  // namespace utrain
