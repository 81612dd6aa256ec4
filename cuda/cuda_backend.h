// What the rest of cuda/ asks of the CUDA backend.
#pragma once

#include <cuda_runtime.h>

#include "backend.h"

namespace utrain::cuda {

// The stream of all its operations; backend is one of make_cuda_backend.
cudaStream_t stream_of(const Backend& backend);

}  // namespace utrain::cuda
