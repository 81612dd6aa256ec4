// The CPU backend: backend.h on host memory. T = float is what trains; T = double and
// complex<double> are the oracles. Every function hands over to the file of its operation, where
// shapes are checked; dtypes are checked where a Tensor becomes a View. Memory from allocate is
// host memory, 256-byte aligned, not zeroed, and freed when the backend ends.
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backend.h"
#include "core/convert.h"
#include "cpu/adamw.h"
#include "cpu/attention.h"
#include "cpu/checksum.h"
#include "cpu/cross_entropy.h"
#include "cpu/embedding.h"
#include "cpu/grad_norm.h"
#include "cpu/linear.h"
#include "cpu/residual.h"
#include "cpu/rmsnorm.h"
#include "cpu/rope.h"
#include "cpu/rounding_backend.h"
#include "cpu/swiglu.h"

namespace utrain {
namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class To, class From>
To converted(From x) {
  if constexpr (std::is_same_v<To, From> || !cpu::is_real<To>) {
    return static_cast<To>(x);
  } else {
    return static_cast<To>(cpu::real_of(x));
  }
}

template <class To, class From>
void convert_rows(cpu::View<To> y, cpu::View<From> x) {
  for (int64_t n = 0; n < y.rows; ++n) {
    for (int64_t c = 0; c < y.cols; ++c) y.row(n)[c] = converted<To>(x.row(n)[c]);
  }
}

template <class To>
void convert_to(cpu::View<To> y, const Tensor& x) {
  switch (x.dtype) {
    case DType::f32: return convert_rows<To, float>(y, x);
    case DType::f64: return convert_rows<To, double>(y, x);
    case DType::c128: return convert_rows<To, std::complex<double>>(y, x);
    default: ASSERT(!"a dtype that the CPU computes in");
  }
}

// To a dtype that nothing is computed in here, for a device whose values are updated on the host.
void convert_to_narrow(const Tensor& y, const Tensor& x) {
  constexpr int64_t kChunk = 1 << 14;
  const int64_t chunks = (x.cols + kChunk - 1) / kChunk;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = c * kChunk;
      from_float(y.dtype, x.as<float>() + n * x.ld + begin, std::min(kChunk, x.cols - begin),
                 static_cast<char*>(y.data) + (n * y.ld + begin) * size_of(y.dtype));
    }
  }
}

template <class T>
class CpuBackend : public Backend {
 public:
  std::string name() const override { return "cpu"; }
  DType dtype() const override { return dtype_of<T>; }
  DType trainable_dtype() const override { return dtype_of<T>; }
  DType loss_dtype() const override { return dtype_of<cpu::Wide<T>>; }

  void* allocate(int64_t bytes) override {
    constexpr int64_t alignment = 256;
    ASSERT(bytes >= 0);
    const int64_t rounded = std::max((bytes + alignment - 1) / alignment * alignment, alignment);
    std::unique_ptr<void, Free> memory(std::aligned_alloc(alignment, rounded));
    if (memory == nullptr) {
      fail(ExitCode::usage, "memory", fmt::format("{} bytes cannot be allocated", bytes),
           "use fewer rows a pass, shorter rows or more recomputation");
    }
    memory_.push_back(std::move(memory));
    return memory_.back().get();
  }
  void upload(void* device, const void* host, int64_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, int64_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  int64_t download_begin(const void* device, int64_t bytes) override {
    ASSERT(bytes <= kSmallDownload);
    Small& small = small_downloads_[static_cast<size_t>(++n_small_ % kSmallInFlight)];
    small.bytes = bytes;
    std::memcpy(small.data.data(), device, static_cast<size_t>(bytes));
    return n_small_;
  }
  void download_end(void* host, int64_t ticket) override {
    ASSERT(ticket > n_small_ - kSmallInFlight && ticket <= n_small_);
    const Small& small = small_downloads_[static_cast<size_t>(ticket % kSmallInFlight)];
    std::memcpy(host, small.data.data(), static_cast<size_t>(small.bytes));
  }
  int64_t moment() override {
    moments_[static_cast<size_t>(++n_moments_ % kMoments)] = std::chrono::steady_clock::now();
    return n_moments_;
  }
  double seconds(int64_t from, int64_t to) override {
    ASSERT(from > n_moments_ - kMoments && from <= to && to <= n_moments_);
    return std::chrono::duration<double>(moments_[static_cast<size_t>(to % kMoments)] -
                                         moments_[static_cast<size_t>(from % kMoments)])
        .count();
  }
  void zero(const Tensor& x) override {
    for (int64_t n = 0; n < x.rows; ++n) {
      std::memset(static_cast<char*>(x.data) + n * x.ld * size_of(x.dtype), 0,
                  x.cols * size_of(x.dtype));
    }
  }
  void convert(const Tensor& y, const Tensor& x) override {
    ASSERT(y.rows == x.rows && y.cols == x.cols);
    switch (y.dtype) {
      case DType::f32: return convert_to<float>(y, x);
      case DType::f64: return convert_to<double>(y, x);
      case DType::c128: return convert_to<std::complex<double>>(y, x);
      case DType::bf16:
      case DType::f16: ASSERT(x.dtype == DType::f32); return convert_to_narrow(y, x);
    }
  }

  void embedding_forward(const Tensor& x, const Tensor& table, const TokenBatch& batch) override {
    cpu::embedding_forward<T>(x, table, batch);
  }
  void embedding_backward(const Tensor& dtable, const Tensor& dx,
                          const TokenBatch& batch) override {
    cpu::embedding_backward<T>(dtable, dx, batch);
  }

  void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                       double eps) override {
    cpu::rmsnorm_forward<T>(y, rstd, x, weight, eps);
  }
  void residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd,
                                const Tensor& x, const Tensor& branch, const Tensor& weight,
                                double eps) override {
    cpu::residual_rmsnorm_forward<T>(h, y, rstd, x, branch, weight, eps);
  }
  // Column sums need no scratch here.
  void rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy, const Tensor& x,
                        const Tensor& rstd, const Tensor& weight, float beta,
                        const Tensor& /*column_sums*/) override {
    cpu::rmsnorm_backward<T>(dx, dweight, dy, x, rstd, weight, beta);
  }
  void residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch) override {
    cpu::residual_forward<T>(h, x, branch);
  }

  void rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D,
                    const TokenBatch& batch) override {
    cpu::rope_forward<T>(x, cos_sin, D, batch);
  }
  void rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D,
                     const TokenBatch& batch) override {
    cpu::rope_backward<T>(dx, cos_sin, D, batch);
  }

  void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const TokenBatch& batch,
                         const AttentionShape& shape) override {
    cpu::attention_forward<T>(out, lse, q, k, v, batch, shape);
  }
  void attention_backward(const Tensor& dqkv, const Tensor& delta, const Tensor& dout,
                          const Tensor& out, const Tensor& lse, const Tensor& qkv,
                          const TokenBatch& batch, const AttentionShape& shape) override {
    cpu::attention_backward<T>(dqkv, delta, dout, out, lse, qkv, batch, shape);
  }

  void swiglu_forward(const Tensor& act, const Tensor& gate_up) override {
    cpu::swiglu_forward<T>(act, gate_up);
  }
  void swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up) override {
    cpu::swiglu_backward<T>(dgate_up, dact, gate_up);
  }

  void linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x, const Linear& linear,
                      const LinearContext& context) override {
    cpu::linear_forward<T>(y, xa, x, linear, context);
  }
  void linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& xa,
                       const Linear& linear, const LinearContext& context) override {
    cpu::linear_backward<T>(dx, dy, x, xa, linear, context);
  }

  void cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x, const Head& head,
                     const TokenBatch& batch, const LossFactor& dloss,
                     const LossScratch& scratch) override {
    cpu::cross_entropy<T>(loss, dx, x, head, batch, dloss, scratch);
  }

  void sum_of_squares(const Tensor& block_sums, const Tensor& x) override {
    cpu::sum_of_squares<T>(block_sums, x);
  }
  void clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums, double max_grad_norm,
            const LossScaling& scaling) override {
    cpu::clip<cpu::Wide<T>>(state, loss, block_sums, max_grad_norm, scaling);
  }
  void adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
                    const Tensor& state, const AdamW& options) override {
    cpu::adamw_update<T>(p, m, v, g, state, options);
  }
  void checksum(const Tensor& sum, const Tensor& x) override { cpu::checksum(sum, x); }

 private:
  struct Small {
    std::array<std::byte, kSmallDownload> data;
    int64_t bytes = 0;
  };

  std::vector<std::unique_ptr<void, Free>> memory_;
  std::array<Small, kSmallInFlight> small_downloads_;
  std::array<std::chrono::steady_clock::time_point, kMoments> moments_;
  int64_t n_small_ = 0, n_moments_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(DType dtype) {
  switch (dtype) {
    case DType::f32: return std::make_unique<CpuBackend<float>>();
    case DType::f64: return std::make_unique<CpuBackend<double>>();
    case DType::c128: return std::make_unique<CpuBackend<std::complex<double>>>();
    case DType::bf16:
    case DType::f16: return make_rounding_backend(std::make_unique<CpuBackend<float>>(), dtype);
  }
  return nullptr;
}

}  // namespace utrain
