// Checked calls of the CUDA libraries: CUDA_CHECK(call), CUBLAS_CHECK(call), and
// CUDA_LAUNCH_CHECK() after every launch. A failure becomes an Error that names the call, its place
// and the library's reason: usage (2) where the GPU is out of memory, internal (70) otherwise.
// Errors of a kernel surface at a later call; with UTRAIN_SYNC=1 in the environment every launch
// waits for its kernel and so names the right one. nvcc needs -DFMT_USE_CONSTEXPR=1: fmt 9 takes it
// for less.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "core/error.h"

namespace utrain::cuda {

inline constexpr std::string_view kMemoryRemedy =
    "set train.recompute = \"block\", lower train.micro_batch_size or data.seq_len, or take a "
    "GPU with more memory";

struct CallSite {
  const char* call;
  const char* file;
  int line;
};

[[noreturn]] inline void fail_call(const CallSite& site, const std::string& reason) {
  fail(ExitCode::internal, fmt::format("{}:{}", site.file, site.line),
       fmt::format("{}: {}", site.call, reason),
       "run again with UTRAIN_SYNC=1 to learn which kernel it was; check the GPU with nvidia-smi");
}

inline void check_call(cudaError_t status, const CallSite& site) {
  if (status == cudaSuccess) return;
  if (status == cudaErrorMemoryAllocation) {
    fail(ExitCode::usage, "GPU memory",
         fmt::format("out of memory in {} ({}:{})", site.call, site.file, site.line),
         kMemoryRemedy);
  }
  fail_call(site, fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status)));
}

inline void check_call(cublasStatus_t status, const CallSite& site) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail_call(site, cublasLtGetStatusName(status));
}

inline void check_launch(const CallSite& site) {
  check_call(cudaGetLastError(), site);
  static const bool waits = [] {
    const char* value = std::getenv("UTRAIN_SYNC");
    return value != nullptr && std::string_view(value) == "1";
  }();
  if (waits) check_call(cudaDeviceSynchronize(), site);
}

}  // namespace utrain::cuda

#define UTRAIN_CHECK_CALL(call) ::utrain::cuda::check_call((call), {#call, __FILE__, __LINE__})
#define CUDA_CHECK(call) UTRAIN_CHECK_CALL(call)
#define CUBLAS_CHECK(call) UTRAIN_CHECK_CALL(call)
#define CUDA_LAUNCH_CHECK() ::utrain::cuda::check_launch({"kernel launch", __FILE__, __LINE__})
