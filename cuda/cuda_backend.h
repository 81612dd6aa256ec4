// The stream on which a CUDA backend works, for what must be ordered with it.
#pragma once

#include <cuda_runtime.h>

#include "backend.h"

namespace utrain::cuda {

cudaStream_t stream_of(const Backend& backend);  // of make_cuda_backend

}  // namespace utrain::cuda
