// What each operation of backend.h has to do at least, from the shapes of its operands.
//   flops  of matrix products, 2 m n k each; all else is bound by bytes and counts none
//   bytes  that must move: every operand read once, every output written once, += and in place
//          both. Scratch moves nothing, for a perfect kernel keeps it on the chip.
// Pairs are (query, key) pairs of one head that the mask lets through: core/causal_pairs.h.
#pragma once

#include "backend.h"

namespace utrain {

struct OpCost {
  double flops = 0.0, bytes = 0.0;

  OpCost& operator+=(const OpCost& other) {
    flops += other.flops;
    bytes += other.bytes;
    return *this;
  }
  friend OpCost operator+(OpCost a, const OpCost& b) { return a += b; }
};

// A linear operation: the product with W, and what the adapters add to it. x, y and their
// gradients count with W, unless only the adapters read them.
struct LinearCost {
  OpCost base, adapters;
  OpCost sum() const { return base + adapters; }
};

OpCost cost_of_zero(const Tensor& x);
OpCost cost_of_convert(const Tensor& y, const Tensor& x);
OpCost cost_of_embedding_forward(const Tensor& x);
OpCost cost_of_embedding_backward(const Tensor& dtable, const Tensor& dx);  // no token twice
OpCost cost_of_rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                               const Tensor& weight);
OpCost cost_of_residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd,
                                        const Tensor& x, const Tensor& branch,
                                        const Tensor& weight);
OpCost cost_of_rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy,
                                const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                float beta);
OpCost cost_of_residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch);
OpCost cost_of_rope(const Tensor& x, const Tensor& cos_sin);  // forward or backward
// Two products a pair forward; five backward, for it makes the scores again.
OpCost cost_of_attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q,
                                 const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                 int64_t pairs);
OpCost cost_of_attention_backward(const Tensor& dqkv, const Tensor& dout, const Tensor& out,
                                  const Tensor& lse, const Tensor& qkv, const AttentionShape& shape,
                                  int64_t pairs);
OpCost cost_of_swiglu_forward(const Tensor& act, const Tensor& gate_up);
OpCost cost_of_swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up);
LinearCost cost_of_linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x,
                                  const Linear& linear);
LinearCost cost_of_linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x,
                                   const Tensor& xa, const Linear& linear);
OpCost cost_of_cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x,
                             const Head& head, int64_t n_targets);
OpCost cost_of_sum_of_squares(const Tensor& block_sums, const Tensor& x);
OpCost cost_of_clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums);
OpCost cost_of_adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g);
OpCost cost_of_checksum(const Tensor& sum, const Tensor& x);

}  // namespace utrain
