// What calls of NCCL are done on and where they receive: a stream and scratch memory, of one
// communicator or more, so that whoever waits for it waits for all of them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <thread>
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

inline int64_t free_bytes() {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
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

[[noreturn]] inline void fail_waiting(int rank, int ranks, int seconds) {
  fail(ExitCode::internal, "ncclCommInitRank",
       fmt::format("rank {} of {} waited {} s for the others", rank, ranks, seconds),
       "see which rank is missing; NCCL_DEBUG=INFO tells what NCCL does, NCCL_SOCKET_IFNAME names "
       "the network by which ranks find each other");
}

// In a thread of its own, whose error is thrown here; false where it is not done in time: then the
// thread is left behind.
inline bool done_within(std::chrono::seconds bound, std::function<void()> work) {
  std::packaged_task<void()> task(std::move(work));
  std::future<void> done = task.get_future();
  std::thread(std::move(task)).detach();
  if (done.wait_for(bound) != std::future_status::ready) return false;
  done.get();
  return true;
}

}  // namespace utrain::cuda
