// Model FLOPs of LoRA fine-tuning, as they are counted for MFU (Chowdhery et al. 2022,
// arXiv:2204.02311, appendix B): what the mathematics asks for, in matrix products alone, however
// it is computed. A product of [m, k] and [k, n] is 2 m n k.
//   frozen matrix  forward; backward dX where something trained lies below it, never dW
//   adapter        forward x A', (xA') B'; backward dy B, dA, dB, and its part of dX as above
//   attention      4 D Hq for each visible (query, key) pair, backward twice that; documents,
//                  causality and windows are respected
//   head           on rows with a target alone, forward and dX
// Not counted: what is computed again (recomputation, scores in the backward pass of attention),
// padding, norms, RoPE, SwiGLU, softmax, the optimizer.
#pragma once

#include <vector>

#include "model/architecture.h"
#include "model/lora.h"

namespace utrain {

// Forward and backward over documents of these lengths (tokens as used), n_targets of them targets:
// of one optimizer step where those are its documents, on all ranks together.
double model_flops(const Architecture& architecture, const LoraOptions& lora,
                   const std::vector<int64_t>& lengths, int64_t n_targets);

// Of full fine-tuning: every product of the forward pass has two in the backward, dX and dW; the
// embedding is looked up, not multiplied.
double full_model_flops(const Architecture& architecture, const std::vector<int64_t>& lengths,
                        int64_t n_targets);

}  // namespace utrain
