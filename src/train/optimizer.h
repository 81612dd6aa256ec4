// Gradient norm, clipping and AdamW on the flat trainable buffers.
//   norm = sqrt(sum g^2), block sums of 1,024 elements added in block order; factor = min(1,
//   max_norm / (norm + 1e-6)) AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101, as torch
//   computes it
#pragma once

#include "config/config.h"
#include "model/lora.h"

namespace utrain {

class Optimizer {
 public:
  Optimizer(const Config::Train& options, const Adapters& adapters, Backend& backend, Arena& arena);
  void bind(const Arena& arena);  // after the arena is placed; the moments start at zero

  double grad_norm() const;  // of the adapters' gradients, before clipping
  // One update of the parameters from their gradients, scaled by the clipping factor of grad_norm.
  // Counts.
  void update(double lr, double grad_norm);
  int64_t n_updates() const { return n_updates_; }

 private:
  Config::Train options_;
  const Adapters& adapters_;
  Backend& backend_;
  Arena::Id m_id_, v_id_, block_sums_id_;
  Tensor m_, v_;       // [1, n] trainable dtype
  Tensor block_sums_;  // [1, n / 1024] loss dtype
  int64_t n_updates_ = 0;
};

}  // namespace utrain
