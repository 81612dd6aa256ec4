// float32 <-> any dtype, on the host; rounding to nearest even.
#pragma once

#include "core/dtype.h"

namespace utrain {

void from_float(DType dtype, const float* x, int64_t n, void* out);  // out: n elements of dtype
void to_float(DType dtype, const void* x, int64_t n, float* out);    // c128: the real part

}  // namespace utrain
