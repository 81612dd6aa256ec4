// What the host learns of one stream without stopping it: small downloads that are waited for
// alone, and moments, whose distances are times on the GPU. The newest of each can be asked for:
// see Backend. One thread at a time.
#pragma once

#include <cstring>
#include <vector>

#include "backend.h"
#include "handle.h"

namespace utrain::cuda {

class SmallDownloads {
 public:
  explicit SmallDownloads(cudaStream_t stream)
      : stream_(stream), memory_(make_pinned(kSlots * kBytes)) {
    for (int64_t i = 0; i < kSlots; ++i) slots_.push_back({make_event(), 0});
  }

  int64_t begin(const void* device, int64_t bytes) {
    ASSERT(bytes <= kBytes);
    const int64_t ticket = ++newest_;
    Slot& slot = slots_[ticket % kSlots];
    slot.bytes = bytes;
    CUDA_CHECK(cudaMemcpyAsync(at(ticket), device, bytes, cudaMemcpyDeviceToHost, stream_));
    CUDA_CHECK(cudaEventRecord(slot.done.get(), stream_));
    return ticket;
  }
  void end(void* host, int64_t ticket) {
    ASSERT(ticket > newest_ - kSlots && ticket <= newest_);
    const Slot& slot = slots_[ticket % kSlots];
    CUDA_CHECK(cudaEventSynchronize(slot.done.get()));
    std::memcpy(host, at(ticket), slot.bytes);
  }

 private:
  static constexpr int64_t kSlots = Backend::kSmallInFlight, kBytes = Backend::kSmallDownload;
  struct Slot {
    Event done;
    int64_t bytes;
  };
  char* at(int64_t ticket) const {
    return static_cast<char*>(memory_.get()) + ticket % kSlots * kBytes;
  }

  cudaStream_t stream_;
  PinnedMemory memory_;
  std::vector<Slot> slots_;
  int64_t newest_ = 0;
};

class Moments {
 public:
  explicit Moments(cudaStream_t stream) : stream_(stream), events_(kEvents) {}

  int64_t record() {
    Event& event = events_[++newest_ % kEvents];
    if (event == nullptr) event = make_timing_event();
    CUDA_CHECK(cudaEventRecord(event.get(), stream_));
    return newest_;
  }
  double seconds(int64_t from, int64_t to) const {
    ASSERT(from > newest_ - kEvents && from <= to && to <= newest_);
    const Event &first = events_[from % kEvents], &last = events_[to % kEvents];
    CUDA_CHECK(cudaEventSynchronize(last.get()));
    float milliseconds = 0.0f;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, first.get(), last.get()));
    return 1e-3 * milliseconds;
  }

 private:
  static constexpr int64_t kEvents = Backend::kMoments;

  cudaStream_t stream_;
  std::vector<Event> events_;
  int64_t newest_ = 0;
};

}  // namespace utrain::cuda
