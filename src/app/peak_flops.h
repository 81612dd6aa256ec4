// What a GPU's data sheet promises, for MFU: dense products (no 2:4 sparsity), of the whole GPU at
// the clocks and power it is sold with.
#pragma once

#include <string>

#include "core/dtype.h"

namespace utrain {

// FLOP/s by the name the driver gives ("NVIDIA H100 80GB HBM3"); float32 without TF32. 0 where the
// GPU or its peak is not known, and for a part of one (MIG).
double peak_flops(const std::string& gpu_name, DType dtype);

}  // namespace utrain
