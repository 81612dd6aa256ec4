// How long a stream waited for events of another one, measured on the GPU: the host waits for
// nothing but a wait that is kWaits waits old.
#pragma once

#include <array>
#include <cstdint>

#include "handle.h"

namespace utrain::cuda {

class Waits {
 public:
  Waits() {
    for (Wait& wait : waits_) wait = {make_timing_event(), make_timing_event()};
  }

  // What is launched on the stream from now on begins when the event has happened.
  void wait(cudaStream_t stream, cudaEvent_t event) {
    if (begun_ - read_ == kWaits) read_oldest();
    const Wait& wait = waits_[static_cast<size_t>(begun_++ % kWaits)];
    CUDA_CHECK(cudaEventRecord(wait.begin.get(), stream));
    CUDA_CHECK(cudaStreamWaitEvent(stream, event));
    CUDA_CHECK(cudaEventRecord(wait.end.get(), stream));
  }

  // Of all waits; the host waits until they are over.
  double seconds() {
    while (read_ < begun_) read_oldest();
    return seconds_;
  }

 private:
  static constexpr int64_t kWaits = 1024;
  struct Wait {
    Event begin, end;
  };

  void read_oldest() {
    const Wait& wait = waits_[static_cast<size_t>(read_++ % kWaits)];
    float ms = 0.0f;
    CUDA_CHECK(cudaEventSynchronize(wait.end.get()));
    CUDA_CHECK(cudaEventElapsedTime(&ms, wait.begin.get(), wait.end.get()));
    seconds_ += 1e-3 * ms;
  }

  std::array<Wait, kWaits> waits_;
  int64_t begun_ = 0, read_ = 0;
  double seconds_ = 0.0;
};

}  // namespace utrain::cuda
