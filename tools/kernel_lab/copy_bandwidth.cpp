// What the link between host and GPU carries: large copies from and to pinned memory, each way
// alone and both at once. The ceiling of parallel.offload_params and offload_optimizer.
//   copy_bandwidth [MB = 256]
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "backend.h"
#include "core/error.h"

namespace utrain {
namespace {

constexpr int kRepeats = 9, kCopies = 8;

class Bench {
 public:
  explicit Bench(int64_t bytes)
      : bytes_(bytes),
        backend_(make_cuda_backend(DType::bf16)),
        host_{backend_->allocate_host(bytes), backend_->allocate_host(bytes)},
        device_{backend_->allocate(bytes), backend_->allocate(bytes)} {}

  // GB/s of all directions together, median.
  double rate(bool in, bool out) {
    std::vector<double> rates;
    for (int i = 0; i < kRepeats; ++i) {
      const int64_t from = backend_->moment();
      int64_t last_in = 0, last_out = 0;
      for (int copy = 0; copy < kCopies; ++copy) {
        if (in) last_in = backend_->copy_in_begin(device_[0], host_[0].get(), bytes_);
        if (out) last_out = backend_->copy_out_begin(host_[1].get(), device_[1], bytes_);
      }
      backend_->copy_wait(last_in);
      backend_->copy_wait(last_out);
      const double seconds = backend_->seconds(from, backend_->moment());
      rates.push_back(static_cast<double>(bytes_ * kCopies * (in + out)) * 1e-9 / seconds);
    }
    std::nth_element(rates.begin(), rates.begin() + kRepeats / 2, rates.end());
    return rates[kRepeats / 2];
  }

 private:
  int64_t bytes_;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<void> host_[2];
  void* device_[2];
};

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  const int64_t megabytes = argc > 1 ? std::atoll(argv[1]) : 256;
  try {
    utrain::Bench bench(std::max<int64_t>(megabytes, 1) << 20);
    fmt::print("host to GPU {:6.1f} GB/s\n", bench.rate(true, false));
    fmt::print("GPU to host {:6.1f} GB/s\n", bench.rate(false, true));
    fmt::print("both at once {:5.1f} GB/s\n", bench.rate(true, true));
  } catch (const utrain::Error& error) {
    fmt::print(stderr, "copy_bandwidth: error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}
