// What calls of NCCL are done on and where they receive: a stream and scratch memory, of one
// communicator or more, so that whoever waits for it waits for all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda_check.h"
#include "handle.h"
#include "nccl_communicator.h"

namespace utrain::cuda {

// Before the backend's kernels in the queue of the GPU: what waits for a sum waits for all ranks.
inline Stream make_urgent_stream() {
  int least = 0, greatest = 0;
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest));
  return Stream(stream);
}

struct Lane {
  Stream stream;
  int64_t scratch_bytes;
  DeviceMemory scratch;
  std::vector<const NcclCommunicator*> communicators = {};

  bool failed() const {
    return std::any_of(communicators.begin(), communicators.end(),
                       [](const auto* communicator) { return communicator->failed(); });
  }
  void check() const {
    for (const auto* communicator : communicators) communicator->check();
  }
};

inline std::shared_ptr<Lane> make_lane(int64_t scratch_bytes) {
  return std::make_shared<Lane>(
      Lane{make_urgent_stream(), scratch_bytes, make_device_memory(scratch_bytes)});
}

inline constexpr int64_t kPartAlignment = 256;

// Scratch for the part of each other rank.
inline int64_t bytes_of_part(int64_t scratch_bytes, int ranks) {
  const int64_t bytes = scratch_bytes / std::max(1, ranks - 1);
  return std::max(kPartAlignment, bytes / kPartAlignment * kPartAlignment);
}

}  // namespace utrain::cuda
