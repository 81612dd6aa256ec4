// A ring of pinned memory between the host and one stream: upload_ring.h.
#include "upload_ring.h"

#include <algorithm>
#include <cstring>

namespace utrain::cuda {

void UploadRing::upload(void* device, const void* host, int64_t bytes) {
  char* target = static_cast<char*>(device);
  const char* source = static_cast<const char*>(host);
  for (int64_t begin = 0; begin < bytes; begin += kChunkBytes) {
    upload_chunk(target + begin, source + begin, std::min(kChunkBytes, bytes - begin));
  }
}

void UploadRing::upload_chunk(char* device, const char* host, int64_t bytes) {
  const int64_t begin = make_room(bytes);
  char* pinned = static_cast<char*>(memory_.get()) + begin;
  std::memcpy(pinned, host, bytes);
  CUDA_CHECK(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream_));
  Event done = idle_.empty() ? make_event() : std::move(idle_.back());
  if (!idle_.empty()) idle_.pop_back();
  CUDA_CHECK(cudaEventRecord(done.get(), stream_));
  in_flight_.push_back({begin, begin + bytes, std::move(done)});
  next_ = begin + bytes;
}

int64_t UploadRing::make_room(int64_t bytes) {
  const int64_t begin = next_ + bytes <= kBytes ? next_ : 0, end = begin + bytes;
  size_t n_parts = in_flight_.size() < kMaxInFlight ? 0 : 1;
  for (size_t i = 0; i < in_flight_.size(); ++i) {
    if (in_flight_[i].begin < end && begin < in_flight_[i].end) n_parts = i + 1;
  }
  wait_for_first(n_parts);
  return begin;
}

// The stream works in order: where the last of them is done, all are.
void UploadRing::wait_for_first(size_t n_parts) {
  if (n_parts == 0) return;
  CUDA_CHECK(cudaEventSynchronize(in_flight_[n_parts - 1].done.get()));
  for (size_t i = 0; i < n_parts; ++i) {
    idle_.push_back(std::move(in_flight_.front().done));
    in_flight_.pop_front();
  }
}

}  // namespace utrain::cuda
