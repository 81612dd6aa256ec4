// A Backend that writes down what it is asked to do: operations, their FLOPs and bytes (op_cost.h),
// and how long another backend takes for them. Around a backend it hands every call on, with the
// same results to the bit. Around none it is the plan backend: the same model code runs, nothing is
// computed, no memory is taken, and what is downloaded is zero.
//   Copies beside the computation are counted; they have no time of their own.
//   Attention costs by documents, whose extents lie on the device: they are found in what was
//   uploaded, of which the newest kKeptBytes are kept here.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "plan/op_cost.h"

namespace utrain {

// All calls of one operation, on operands of one kind.
struct OpRecord {
  std::string op;  // as in backend.h
  std::string
      kind;  // "28672x4096": out x in of a linear operation; "float32 to bfloat16"; or empty
  int64_t calls = 0;
  OpCost cost;         // all of it
  OpCost adapters;     // of that, the adapters' part of a linear operation
  double seconds = 0;  // of the calls made while timing
};

class RecordingBackend : public Backend {
 public:
  explicit RecordingBackend(Backend& inner);  // which lives longer
  // Plans: T = dtype, adapters and gradients float32 and losses float64, or T where wider.
  // row_multiple: of the backend that is planned for.
  explicit RecordingBackend(DType dtype, int64_t row_multiple = 1);

  // Counts calls from now on, or no longer; at first it does not.
  void record(bool on) { recording_ = on; }
  // Takes the time of recorded calls: a moment before and after each, so gaps between calls are
  // nobody's. Needs an inner backend, of which the caller then asks for fewer moments: they share
  // kMoments.
  void time(bool on);
  // In the order of their first calls; waits for those that are timed.
  const std::vector<OpRecord>& records();
  void clear();  // forgets the records
  int64_t allocated_bytes() const { return allocated_bytes_; }

  int64_t row_multiple() const override { return inner_ ? inner_->row_multiple() : row_multiple_; }
  std::string name() const override;
  DType dtype() const override { return dtype_; }
  DType trainable_dtype() const override { return trainable_dtype_; }
  DType loss_dtype() const override { return loss_dtype_; }
  int64_t reserve_bytes() const override;
  void* allocate(int64_t bytes) override;
  std::shared_ptr<void> allocate_host(int64_t bytes) override;
  void upload(void* device, const void* host, int64_t bytes) override;
  void download(void* host, const void* device, int64_t bytes) override;
  int64_t download_begin(const void* device, int64_t bytes) override;
  void download_end(void* host, int64_t ticket) override;
  int64_t copy_in_begin(void* device, const void* host, int64_t bytes) override;
  int64_t copy_out_begin(void* host, const void* device, int64_t bytes) override;
  void copy_wait(int64_t ticket) override;
  void copy_wait_host(int64_t ticket) override;
  std::unique_ptr<Backend> make_host_backend() const override;
  int64_t moment() override;
  double seconds(int64_t from, int64_t to) override;
  bool is_asynchronous() const override;
  void zero(const Tensor& x) override;
  void convert(const Tensor& y, const Tensor& x) override;
  void embedding_forward(const Tensor& x, const Tensor& table, const TokenBatch& batch) override;
  void embedding_backward(const Tensor& dtable, const Tensor& dx, const TokenBatch& batch) override;
  void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                       double eps) override;
  void residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd,
                                const Tensor& x, const Tensor& branch, const Tensor& weight,
                                double eps) override;
  void rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy, const Tensor& x,
                        const Tensor& rstd, const Tensor& weight, float beta,
                        const Tensor& column_sums) override;
  void residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch) override;
  void rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D,
                    const TokenBatch& batch) override;
  void rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D,
                     const TokenBatch& batch) override;
  void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const TokenBatch& batch,
                         const AttentionShape& shape) override;
  void attention_backward(const Tensor& dqkv, const Tensor& delta, const Tensor& dout,
                          const Tensor& out, const Tensor& lse, const Tensor& qkv,
                          const TokenBatch& batch, const AttentionShape& shape) override;
  void swiglu_forward(const Tensor& act, const Tensor& gate_up) override;
  void swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up) override;
  void linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x, const Linear& linear,
                      const LinearContext& context) override;
  void linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& xa,
                       const Linear& linear, const LinearContext& context) override;
  void cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x, const Head& head,
                     const TokenBatch& batch, const LossFactor& dloss,
                     const LossScratch& scratch) override;
  void sum_of_squares(const Tensor& block_sums, const Tensor& x) override;
  void clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums, double max_grad_norm,
            const LossScaling& scaling) override;
  void adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
                    const Tensor& state, const AdamW& options) override;
  void checksum(const Tensor& sum, const Tensor& x) override;

 private:
  static constexpr int64_t kKeptBytes = int64_t{64} << 20;

  struct Call {
    const char* op;
    std::string kind;
    OpCost cost, adapters;
  };
  struct Upload {
    const char* device;
    std::vector<std::byte> data;
  };
  struct TimedCall {
    size_t record;
    int64_t from, to;  // moments of the inner backend
  };

  template <class F>
  void call(const Call& call, F&& work);
  size_t count(const Call& call);  // which record it went to
  void read_times();
  int64_t pairs_of(const TokenBatch& batch, int64_t window) const;
  const int32_t* uploaded(const int32_t* device, int64_t n) const;

  Backend* inner_ = nullptr;  // none: plans
  DType dtype_, trainable_dtype_, loss_dtype_;
  int64_t row_multiple_ = 1;
  bool recording_ = false, timing_ = false;
  int64_t allocated_bytes_ = 0, host_bytes_ = 0;

  std::vector<OpRecord> records_;
  std::map<std::pair<std::string, std::string>, size_t> record_by_name_;
  std::vector<TimedCall> timed_;  // whose times are not read yet

  std::deque<Upload> uploads_;                            // the newest last
  int64_t uploaded_bytes_ = 0;                            // of uploads_
  std::array<int64_t, kSmallInFlight> small_bytes_ = {};  // of small downloads of a plan
  int64_t n_small_ = 0;
};

}  // namespace utrain
