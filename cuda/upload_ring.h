// Uploads that return as soon as the host's memory was read: bytes are copied to a ring of pinned
// memory, and from there by the stream, in its order. The ring waits for the stream only where its
// bytes, or its number of uploads in flight, run out: small uploads of many passes fit. One thread
// at a time.
#pragma once

#include <cstdint>
#include <deque>

#include "handle.h"

namespace utrain::cuda {

class UploadRing {
 public:
  explicit UploadRing(cudaStream_t stream) : stream_(stream), memory_(make_pinned(kBytes)) {}

  void upload(void* device, const void* host, int64_t bytes);

 private:
  static constexpr int64_t kBytes = 32 << 20;
  static constexpr int64_t kChunkBytes =
      8 << 20;  // of a large upload: the next is filled while the last is on its way
  static constexpr size_t kMaxInFlight = 512;

  struct Part {
    int64_t begin, end;
    Event done;
  };
  void upload_chunk(char* device, const char* host, int64_t bytes);
  int64_t make_room(int64_t bytes);  // where the bytes may go
  void wait_for_first(size_t n_parts);

  cudaStream_t stream_;
  PinnedMemory memory_;
  int64_t next_ = 0;
  std::deque<Part> in_flight_;  // in the stream's order
  std::deque<Event> idle_;
};

}  // namespace utrain::cuda
