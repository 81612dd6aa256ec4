// The stream that calls of one communicator or more are done on, so that whoever waits for it waits
// for all of them.
#pragma once

#include <algorithm>
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
  std::vector<const NcclCommunicator*> communicators = {};

  bool failed() const {
    return std::any_of(communicators.begin(), communicators.end(),
                       [](const auto* communicator) { return communicator->failed(); });
  }
  void check() const {
    for (const auto* communicator : communicators) communicator->check();
  }
};

inline std::shared_ptr<Lane> make_lane() {
  return std::make_shared<Lane>(Lane{make_urgent_stream()});
}

}  // namespace utrain::cuda
