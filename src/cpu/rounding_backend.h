// The CPU backend as if it computed in float16 or bfloat16: what an operation makes of the
// activations is rounded to that type as soon as the operation ends, so that large numbers become
// infinite and small ones vanish as on a GPU. Storage is float32, and so is what a GPU keeps in
// float32: gradients of weights, optimizer state, rstd, lse, losses. What an operation holds inside
// (logits, the gradient of x A') is not rounded, nor are weights as they are loaded: for studies
// and tests of loss scaling, not for speed.
#pragma once

#include <memory>

#include "backend.h"

namespace utrain {

// inner: of dtype float32. dtype: f16 or bf16.
std::unique_ptr<Backend> make_rounding_backend(std::unique_ptr<Backend> inner, DType dtype);

}  // namespace utrain
