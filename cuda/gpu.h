// The GPU of this process.
#pragma once

namespace utrain::cuda {

// Makes it the current device of this thread and opens it. A usage error where it is missing, too
// old, or this binary has no kernels for it; device is an index of visible_gpus().
void open_gpu(int device);

}  // namespace utrain::cuda
