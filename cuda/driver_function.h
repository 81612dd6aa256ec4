// A function of CUDA's driver that the runtime has no name for; null where this driver lacks it. It
// is looked up, so that the program starts on machines without a driver.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

namespace utrain::cuda {

// F: its type as of CUDA 12.0.
template <class F>
F* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    cudaGetLastError();  // this failure is told here, not at the next launch
    return nullptr;
  }
  return reinterpret_cast<F*>(function);
}

}  // namespace utrain::cuda
