// What a pass keeps from its forward for its backward, addressed (pass, layer, slot). Each layer
// has a policy; what a policy does not keep lies in a scratch that all layers share and is computed
// again in the backward pass.
//   keep   everything but norm outputs and SwiGLU, which cost bytes only
//   mlp    all but gate_up
//   block  the input of the layer, and x A' of down, which nothing else computes again
#pragma once

#include <array>
#include <string>
#include <vector>

#include "backend.h"
#include "core/arena.h"
#include "model/lora.h"

namespace utrain {

enum class Recompute { keep, mlp, block };

enum class Slot {
  hidden,      // [N, C] input of the layer: the residual stream
  norm_rstd,   // [N, 1]
  qkv,         // [N, (Hq + 2 Hkv) D] as attention reads it, after RoPE
  qkv_raw,     // the same before the head norms; qk_norm only
  qk_rstd,     // [N, Hq + Hkv] of the head norms
  attention,   // [N, Hq D]
  lse,         // [N, Hq]
  hidden_mid,  // [N, C] the residual stream after attention
  mid_rstd,    // [N, 1]
  gate_up,     // [N, 2F]
  xa_qkv,      // [N, adapters * r], likewise below
  xa_o,
  xa_gate_up,
  xa_down,
};
inline constexpr size_t kSlots = 14;

constexpr Slot xa_slot(Group group) {
  return static_cast<Slot>(static_cast<int>(Slot::xa_qkv) + static_cast<int>(group));
}

class Activations {
 public:
  // capacity: rows of the largest pass. policy [L].
  Activations(const Architecture& architecture, const Adapters& adapters, const Backend& backend,
              int64_t capacity, std::vector<Recompute> policy, Arena& arena);
  void bind(const Arena& arena);

  // The first n rows of a slot. hidden of layer L is the output of the last layer. No slot: empty.
  Tensor operator()(int64_t pass, int64_t layer, Slot slot, int64_t n) const;
  Recompute policy(int64_t layer) const { return policy_.at(static_cast<size_t>(layer)); }
  int64_t capacity() const { return capacity_; }

 private:
  int64_t capacity_;
  std::vector<Recompute> policy_;
  std::vector<std::array<Arena::Id, kSlots>> ids_;  // [L + 1]; -1 = no such slot
  std::vector<std::array<Tensor, kSlots>> slots_;
};

}  // namespace utrain
