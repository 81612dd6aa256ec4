#include "plan/recording_backend.h"

#include <algorithm>
#include <cstring>

#include "core/causal_pairs.h"

namespace utrain {

namespace {

// Addresses that a plan hands out: never read, but told apart, and none of them is null.
constexpr uintptr_t kFirstAddress = uintptr_t{1} << 40;
constexpr uintptr_t kFirstHostAddress = uintptr_t{1} << 60;
constexpr int64_t kAlignment = 256;

int64_t aligned(int64_t bytes) {
  return std::max((bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
}

DType at_least(DType wanted, DType dtype) {
  return size_of(dtype) > size_of(wanted) ? dtype : wanted;
}

std::string shape_of(const Linear& linear) {
  return fmt::format("{}x{}", linear.W.rows, linear.W.cols);
}

OpCost bytes_only(int64_t bytes) {
  return {0.0, static_cast<double>(bytes)};
}

}  // namespace

RecordingBackend::RecordingBackend(Backend& inner)
    : inner_(&inner),
      dtype_(inner.dtype()),
      trainable_dtype_(inner.trainable_dtype()),
      loss_dtype_(inner.loss_dtype()) {}

RecordingBackend::RecordingBackend(DType dtype, int64_t row_multiple)
    : dtype_(dtype),
      trainable_dtype_(at_least(DType::f32, dtype)),
      loss_dtype_(at_least(DType::f64, dtype)),
      row_multiple_(row_multiple) {}

void RecordingBackend::time(bool on) {
  ASSERT(!on || inner_ != nullptr);
  timing_ = on;
}

const std::vector<OpRecord>& RecordingBackend::records() {
  read_times();
  return records_;
}

void RecordingBackend::clear() {
  read_times();
  records_.clear();
  record_by_name_.clear();
}

// Hands a call on to the inner backend, and writes it down.
template <class F>
void RecordingBackend::call(const Call& call, F&& work) {
  const bool timed = recording_ && timing_;
  const int64_t from = timed ? inner_->moment() : 0;
  if (inner_ != nullptr) work(*inner_);
  if (!recording_) return;
  const size_t record = count(call);
  if (!timed) return;
  timed_.push_back({record, from, inner_->moment()});
  if (static_cast<int64_t>(timed_.size()) >= kMoments / 4) read_times();
}

size_t RecordingBackend::count(const Call& call) {
  const auto [place, is_new] = record_by_name_.try_emplace({call.op, call.kind}, records_.size());
  if (is_new) records_.push_back({call.op, call.kind, 0, {}, {}, 0.0});
  OpRecord& record = records_[place->second];
  ++record.calls;
  record.cost += call.cost;
  record.adapters += call.adapters;
  return place->second;
}

void RecordingBackend::read_times() {
  for (const TimedCall& t : timed_) records_[t.record].seconds += inner_->seconds(t.from, t.to);
  timed_.clear();
}

// The newest upload that covers n numbers at this address.
const int32_t* RecordingBackend::uploaded(const int32_t* device, int64_t n) const {
  const char* begin = reinterpret_cast<const char*>(device);
  const int64_t bytes = n * static_cast<int64_t>(sizeof(int32_t));
  for (auto upload = uploads_.rbegin(); upload != uploads_.rend(); ++upload) {
    const int64_t offset = begin - upload->device;
    if (offset >= 0 && offset + bytes <= static_cast<int64_t>(upload->data.size())) {
      return reinterpret_cast<const int32_t*>(upload->data.data() + offset);
    }
  }
  ASSERT(!"the documents of the pass were uploaded, and not long ago");
  return nullptr;
}

int64_t RecordingBackend::pairs_of(const TokenBatch& batch, int64_t window) const {
  const int32_t* end = uploaded(batch.end, batch.n_rows);
  int64_t pairs = 0;
  for (int64_t n = 0; n < batch.n_rows; n = end[n]) {
    ASSERT(end[n] > n && end[n] <= batch.n_rows);
    pairs += causal_pairs(end[n] - n, window);
  }
  return pairs;
}

std::string RecordingBackend::name() const {
  return inner_ != nullptr ? inner_->name() : "plan";
}

int64_t RecordingBackend::reserve_bytes() const {
  return inner_ != nullptr ? inner_->reserve_bytes() : 0;
}

bool RecordingBackend::is_asynchronous() const {
  return inner_ != nullptr && inner_->is_asynchronous();
}

void* RecordingBackend::allocate(int64_t bytes) {
  const int64_t before = allocated_bytes_;
  allocated_bytes_ += aligned(bytes);
  if (inner_ != nullptr) return inner_->allocate(bytes);
  return reinterpret_cast<void*>(kFirstAddress + static_cast<uintptr_t>(before));
}

std::shared_ptr<void> RecordingBackend::allocate_host(int64_t bytes) {
  if (inner_ != nullptr) return inner_->allocate_host(bytes);
  const auto address = kFirstHostAddress + static_cast<uintptr_t>(host_bytes_);
  host_bytes_ += aligned(bytes);
  return {reinterpret_cast<void*>(address), [](void*) {}};
}

void RecordingBackend::upload(void* device, const void* host, int64_t bytes) {
  const auto* data = static_cast<const std::byte*>(host);
  if (bytes > 0 && bytes <= kKeptBytes) {
    uploads_.push_back({static_cast<const char*>(device), {data, data + bytes}});
    uploaded_bytes_ += bytes;
    for (; uploaded_bytes_ > kKeptBytes; uploads_.pop_front()) {
      uploaded_bytes_ -= static_cast<int64_t>(uploads_.front().data.size());
    }
  }
  call({"upload", "", bytes_only(bytes), {}},
       [&](Backend& inner) { inner.upload(device, host, bytes); });
}

void RecordingBackend::download(void* host, const void* device, int64_t bytes) {
  if (inner_ == nullptr && bytes > 0) std::memset(host, 0, static_cast<size_t>(bytes));
  call({"download", "", bytes_only(bytes), {}},
       [&](Backend& inner) { inner.download(host, device, bytes); });
}

int64_t RecordingBackend::download_begin(const void* device, int64_t bytes) {
  ASSERT(bytes <= kSmallDownload);
  int64_t ticket = ++n_small_;
  small_bytes_[static_cast<size_t>(ticket % kSmallInFlight)] = bytes;
  call({"download", "small", bytes_only(bytes), {}},
       [&](Backend& inner) { ticket = inner.download_begin(device, bytes); });
  return ticket;
}

void RecordingBackend::download_end(void* host, int64_t ticket) {
  if (inner_ != nullptr) return inner_->download_end(host, ticket);
  ASSERT(ticket > n_small_ - kSmallInFlight && ticket <= n_small_);
  const int64_t bytes = small_bytes_[static_cast<size_t>(ticket % kSmallInFlight)];
  std::memset(host, 0, static_cast<size_t>(bytes));
}

int64_t RecordingBackend::copy_in_begin(void* device, const void* host, int64_t bytes) {
  int64_t ticket = 0;
  if (inner_ != nullptr) ticket = inner_->copy_in_begin(device, host, bytes);
  if (recording_) count({"copy_in", "", bytes_only(bytes), {}});
  return ticket;
}

int64_t RecordingBackend::copy_out_begin(void* host, const void* device, int64_t bytes) {
  int64_t ticket = 0;
  if (inner_ != nullptr) ticket = inner_->copy_out_begin(host, device, bytes);
  if (recording_) count({"copy_out", "", bytes_only(bytes), {}});
  return ticket;
}

void RecordingBackend::copy_wait(int64_t ticket) {
  if (inner_ != nullptr) inner_->copy_wait(ticket);
}

void RecordingBackend::copy_wait_host(int64_t ticket) {
  if (inner_ != nullptr) inner_->copy_wait_host(ticket);
}

std::unique_ptr<Backend> RecordingBackend::make_host_backend() const {
  if (inner_ != nullptr) return inner_->make_host_backend();
  return std::make_unique<RecordingBackend>(trainable_dtype_);
}

int64_t RecordingBackend::moment() {
  return inner_ != nullptr ? inner_->moment() : 0;
}

double RecordingBackend::seconds(int64_t from, int64_t to) {
  return inner_ != nullptr ? inner_->seconds(from, to) : 0.0;
}

void RecordingBackend::zero(const Tensor& x) {
  call({"zero", "", cost_of_zero(x), {}}, [&](Backend& inner) { inner.zero(x); });
}

void RecordingBackend::convert(const Tensor& y, const Tensor& x) {
  call({"convert",
        fmt::format("{} to {}", name_of(x.dtype), name_of(y.dtype)),
        cost_of_convert(y, x),
        {}},
       [&](Backend& inner) { inner.convert(y, x); });
}

void RecordingBackend::embedding_forward(const Tensor& x, const Tensor& table,
                                         const TokenBatch& batch) {
  call({"embedding_forward", "", cost_of_embedding_forward(x), {}},
       [&](Backend& inner) { inner.embedding_forward(x, table, batch); });
}

void RecordingBackend::embedding_backward(const Tensor& dtable, const Tensor& dx,
                                          const TokenBatch& batch) {
  call({"embedding_backward", "", cost_of_embedding_backward(dtable, dx), {}},
       [&](Backend& inner) { inner.embedding_backward(dtable, dx, batch); });
}

void RecordingBackend::rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                                       const Tensor& weight, double eps) {
  call({"rmsnorm_forward",
        fmt::format("{}", weight.cols),
        cost_of_rmsnorm_forward(y, rstd, x, weight),
        {}},
       [&](Backend& inner) { inner.rmsnorm_forward(y, rstd, x, weight, eps); });
}

void RecordingBackend::residual_rmsnorm_forward(const Tensor& h, const Tensor& y,
                                                const Tensor& rstd, const Tensor& x,
                                                const Tensor& branch, const Tensor& weight,
                                                double eps) {
  call({"residual_rmsnorm_forward",
        fmt::format("{}", weight.cols),
        cost_of_residual_rmsnorm_forward(h, y, rstd, x, branch, weight),
        {}},
       [&](Backend& inner) { inner.residual_rmsnorm_forward(h, y, rstd, x, branch, weight, eps); });
}

void RecordingBackend::rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy,
                                        const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                        float beta, const Tensor& column_sums) {
  call({"rmsnorm_backward",
        fmt::format("{}", weight.cols),
        cost_of_rmsnorm_backward(dx, dweight, dy, x, rstd, weight, beta),
        {}},
       [&](Backend& inner) {
         inner.rmsnorm_backward(dx, dweight, dy, x, rstd, weight, beta, column_sums);
       });
}

void RecordingBackend::residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch) {
  call({"residual_forward", "", cost_of_residual_forward(h, x, branch), {}},
       [&](Backend& inner) { inner.residual_forward(h, x, branch); });
}

void RecordingBackend::rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D,
                                    const TokenBatch& batch) {
  call({"rope_forward", "", cost_of_rope(x, cos_sin), {}},
       [&](Backend& inner) { inner.rope_forward(x, cos_sin, D, batch); });
}

void RecordingBackend::rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D,
                                     const TokenBatch& batch) {
  call({"rope_backward", "", cost_of_rope(dx, cos_sin), {}},
       [&](Backend& inner) { inner.rope_backward(dx, cos_sin, D, batch); });
}

void RecordingBackend::attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q,
                                         const Tensor& k, const Tensor& v, const TokenBatch& batch,
                                         const AttentionShape& shape) {
  Call attention{"attention_forward", "", {}, {}};
  if (recording_) {
    const int64_t pairs = pairs_of(batch, shape.window);
    attention.cost = cost_of_attention_forward(out, lse, q, k, v, shape, pairs);
  }
  call(attention,
       [&](Backend& inner) { inner.attention_forward(out, lse, q, k, v, batch, shape); });
}

void RecordingBackend::attention_backward(const Tensor& dqkv, const Tensor& delta,
                                          const Tensor& dout, const Tensor& out, const Tensor& lse,
                                          const Tensor& qkv, const TokenBatch& batch,
                                          const AttentionShape& shape) {
  Call attention{"attention_backward", "", {}, {}};
  if (recording_) {
    const int64_t pairs = pairs_of(batch, shape.window);
    attention.cost = cost_of_attention_backward(dqkv, dout, out, lse, qkv, shape, pairs);
  }
  call(attention, [&](Backend& inner) {
    inner.attention_backward(dqkv, delta, dout, out, lse, qkv, batch, shape);
  });
}

void RecordingBackend::swiglu_forward(const Tensor& act, const Tensor& gate_up) {
  call({"swiglu_forward", "", cost_of_swiglu_forward(act, gate_up), {}},
       [&](Backend& inner) { inner.swiglu_forward(act, gate_up); });
}

void RecordingBackend::swiglu_backward(const Tensor& dgate_up, const Tensor& dact,
                                       const Tensor& gate_up) {
  call({"swiglu_backward", "", cost_of_swiglu_backward(dgate_up, dact, gate_up), {}},
       [&](Backend& inner) { inner.swiglu_backward(dgate_up, dact, gate_up); });
}

void RecordingBackend::linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x,
                                      const Linear& linear, const LinearContext& context) {
  const LinearCost cost = cost_of_linear_forward(y, xa, x, linear);
  call({"linear_forward", shape_of(linear), cost.sum(), cost.adapters},
       [&](Backend& inner) { inner.linear_forward(y, xa, x, linear, context); });
}

void RecordingBackend::linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x,
                                       const Tensor& xa, const Linear& linear,
                                       const LinearContext& context) {
  const LinearCost cost = cost_of_linear_backward(dx, dy, x, xa, linear);
  call({"linear_backward", shape_of(linear), cost.sum(), cost.adapters},
       [&](Backend& inner) { inner.linear_backward(dx, dy, x, xa, linear, context); });
}

void RecordingBackend::cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x,
                                     const Head& head, const TokenBatch& batch,
                                     const LossFactor& dloss, const LossScratch& scratch) {
  call({"cross_entropy", "", cost_of_cross_entropy(loss, dx, x, head, batch.n_targets), {}},
       [&](Backend& inner) { inner.cross_entropy(loss, dx, x, head, batch, dloss, scratch); });
}

void RecordingBackend::sum_of_squares(const Tensor& block_sums, const Tensor& x) {
  call({"sum_of_squares", "", cost_of_sum_of_squares(block_sums, x), {}},
       [&](Backend& inner) { inner.sum_of_squares(block_sums, x); });
}

void RecordingBackend::clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums,
                            double max_grad_norm, const LossScaling& scaling) {
  call({"clip", "", cost_of_clip(state, loss, block_sums), {}},
       [&](Backend& inner) { inner.clip(state, loss, block_sums, max_grad_norm, scaling); });
}

void RecordingBackend::adamw_update(const Tensor& p, const Tensor& m, const Tensor& v,
                                    const Tensor& g, const Tensor& state, const AdamW& options) {
  call({"adamw_update", "", cost_of_adamw_update(p, m, v, g), {}},
       [&](Backend& inner) { inner.adamw_update(p, m, v, g, state, options); });
}

void RecordingBackend::checksum(const Tensor& sum, const Tensor& x) {
  call({"checksum", "", cost_of_checksum(sum, x), {}},
       [&](Backend& inner) { inner.checksum(sum, x); });
}

}  // namespace utrain
