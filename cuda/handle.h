// Handles of the CUDA runtime that end with their owner. Errors while ending are ignored: the
// process may be ending because of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "cuda_check.h"

namespace utrain::cuda {

struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
using Stream = std::unique_ptr<CUstream_st, DestroyStream>;
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;
using DeviceMemory = std::unique_ptr<void, FreeDevice>;
using PinnedMemory = std::unique_ptr<void, FreePinned>;

// A stream that does not wait for the default stream.
inline Stream make_stream() {
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}

// An event without timing: a place in a stream.
inline Event make_event() {
  cudaEvent_t event = nullptr;
  CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

// An event that knows when it happened.
inline Event make_timing_event() {
  cudaEvent_t event = nullptr;
  CUDA_CHECK(cudaEventCreate(&event));
  return Event(event);
}

// Host memory that the GPU reads and writes by itself; a usage error where the host has no room.
inline PinnedMemory make_pinned(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMallocHost(&memory, bytes > 0 ? bytes : 1);
  if (status != cudaErrorMemoryAllocation) {
    CUDA_CHECK(status);
    return PinnedMemory(memory);
  }
  cudaGetLastError();  // this failure is told here, not at the next launch
  fail(ExitCode::usage, "memory",
       fmt::format("{} bytes of the host's memory cannot be pinned for the GPU", bytes),
       "give the job more host memory, raise its limit on locked memory (ulimit -l), or run fewer "
       "ranks on a node");
}

// 256-byte aligned; a usage error that names the numbers where the GPU has no room.
inline DeviceMemory make_device_memory(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
  if (status != cudaErrorMemoryAllocation) {
    CUDA_CHECK(status);
    return DeviceMemory(memory);
  }
  cudaGetLastError();  // this failure is told here, not at the next launch
  size_t free_bytes = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  constexpr double GB = 1e9;
  fail(ExitCode::usage, "GPU memory",
       fmt::format("{} bytes wanted ({:.2f} GB), {} of {} bytes free ({:.2f} GB)", bytes,
                   bytes / GB, free_bytes, total, free_bytes / GB),
       kMemoryRemedy);
}

// Of the current GPU.
inline int64_t free_bytes() {
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

}  // namespace utrain::cuda
