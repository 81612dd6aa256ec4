// loss += cross entropy of the head's logits, and its gradient: cross_entropy of backend.h on the
// stream of `blas`, a chunk of target rows at a time.     CPU twin: src/cpu/cross_entropy.h
#pragma once

#include "backend.h"
#include "handle.h"
#include "matmul.h"

namespace utrain::cuda {

// Holds a few numbers of device memory, which its products read.
class CrossEntropy {
 public:
  static constexpr int64_t kReserveBytes = 256;

  explicit CrossEntropy(Blas& blas);
  void operator()(const Tensor& loss, const Tensor& dx, const Tensor& x, const Head& head,
                  const TokenBatch& batch, const LossFactor& dloss, const LossScratch& scratch);

 private:
  Blas& blas_;
  DeviceMemory factor_memory_;
  Tensor factor_;  // [1, 3] float32: {alpha, 0, 1}, see DeviceFactor
};

}  // namespace utrain::cuda
