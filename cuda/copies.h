// Large copies between device and pinned memory beside one stream's work: a stream for each
// direction, since a link carries both at once. See Backend::copy_in_begin. One thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "backend.h"
#include "handle.h"

namespace utrain::cuda {

class Copies {
 public:
  explicit Copies(cudaStream_t computing) : computing_(computing), done_(kSlots) {}

  int64_t in(void* device, const void* host, int64_t bytes) {
    return begin(in_.get(), device, host, bytes, cudaMemcpyHostToDevice);
  }
  int64_t out(void* host, const void* device, int64_t bytes) {
    return begin(out_.get(), host, device, bytes, cudaMemcpyDeviceToHost);
  }
  void wait(int64_t ticket) {
    if (ticket > 0) CUDA_CHECK(cudaStreamWaitEvent(computing_, done(ticket)));
  }
  void wait_host(int64_t ticket) {
    if (ticket > 0) CUDA_CHECK(cudaEventSynchronize(done(ticket)));
  }

 private:
  static constexpr int64_t kSlots = Backend::kCopies;

  int64_t begin(cudaStream_t stream, void* to, const void* from, int64_t bytes,
                cudaMemcpyKind kind) {
    CUDA_CHECK(cudaEventRecord(computed_.get(), computing_));
    CUDA_CHECK(cudaStreamWaitEvent(stream, computed_.get()));
    if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream));
    Event& event = done_[++newest_ % kSlots];
    if (event == nullptr) event = make_event();
    CUDA_CHECK(cudaEventRecord(event.get(), stream));
    return newest_;
  }
  cudaEvent_t done(int64_t ticket) const {
    ASSERT(ticket > newest_ - kSlots && ticket <= newest_);
    return done_[ticket % kSlots].get();
  }

  cudaStream_t computing_;
  Stream in_ = make_stream(), out_ = make_stream();
  Event computed_ = make_event();
  std::vector<Event> done_;  // by ticket
  int64_t newest_ = 0;
};

}  // namespace utrain::cuda
