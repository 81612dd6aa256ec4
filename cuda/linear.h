// y = x W' + bias + scaling * drop(x) A' B' on the adapter's slice of y: linear_forward and
// linear_backward of backend.h, from products (matmul.h) and dropout (ops.h) on the stream of
// `blas`.     CPU twin: src/cpu/linear.h
#pragma once

#include "backend.h"
#include "matmul.h"

namespace utrain::cuda {

void linear_forward(Blas& blas, const Tensor& y, const Tensor& xa, const Tensor& x,
                    const Linear& linear, const LinearContext& context);
void linear_backward(Blas& blas, const Tensor& dx, const Tensor& dy, const Tensor& x,
                     const Tensor& xa, const Linear& linear, const LinearContext& context);

}  // namespace utrain::cuda
