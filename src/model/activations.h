// What passes keep from their forward for their backward, addressed (pass, layer, slot): several
// passes may go through the layers together. Each layer has a policy; what a policy does not keep
// lies in a scratch that all layers share and is computed again in the backward pass.
//   keep   everything but norm outputs and SwiGLU, which cost bytes only
//   mlp    all but gate_up
//   block  the input of the layer, and x A' of down, which nothing else computes again
//   offload  as block, but the input goes to host memory when the layer's forward is done, and comes
//          back before its backward; the device has a ring of places. x A' of down, C / r times
//          smaller, stays. The views are those of the places: the transformer says where it is.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "backend.h"
#include "core/arena.h"
#include "model/lora.h"

namespace utrain {

enum class Recompute { keep, mlp, block, offload };

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
  // The input of offloaded layer i lies in place i % kRing: one computes, its neighbours are on
  // their way. The last kRing inputs of a forward are where the backward wants them.
  static constexpr int64_t kRing = 3;

  // capacity: rows of the largest pass. policy [L]. n_passes: that go together.
  Activations(const Architecture& architecture, const Adapters& adapters, Backend& backend,
              int64_t capacity, std::vector<Recompute> policy, Arena& arena, int64_t n_passes = 1);
  void bind(const Arena& arena);

  // Of a pass of n rows that will have a backward: the forward of a layer was called, which makes
  // room for the input of the next; the backward of a layer, the last one first, is about to be.
  void forward_done(int64_t pass, int64_t layer, int64_t n);
  void backward_begin(int64_t pass, int64_t layer, int64_t n);

  // The first n rows of a slot. hidden of layer L is the output of the last layer. No slot: empty.
  Tensor operator()(int64_t pass, int64_t layer, Slot slot, int64_t n) const;
  Recompute policy(int64_t layer) const { return policy_.at(static_cast<size_t>(layer)); }
  int64_t capacity() const { return capacity_; }
  int64_t n_passes() const { return static_cast<int64_t>(ids_.size()); }

 private:
  template <class T>
  using OfPass = std::vector<std::array<T, kSlots>>;  // [L + 1]
  struct Shape {
    const char* name;
    DType dtype;
    int64_t cols;  // 0 = this model has no such slot
  };
  // An input in host memory, and the newest copies of it.
  struct Offloaded {
    int64_t layer;
    Arena::Id id;
    Tensor host = {};
    int64_t copied_out = 0, copied_in = 0;
  };
  OfPass<Arena::Id> declare_pass(int64_t pass, const std::array<Shape, kSlots>& shapes,
                                 std::array<Arena::Id, kSlots>& shared, Arena& arena) const;
  std::vector<Offloaded> declare_copied(int64_t pass, const Shape& hidden, Arena& arena) const;
  Offloaded* copied(int64_t pass, int64_t i);  // null where offloaded layer i is not copied
  // Index of the layer among those whose policy is offload; -1: it is none.
  int64_t offloaded_index(int64_t layer) const {
    return offloaded_index_.at(static_cast<size_t>(layer));
  }

  Backend& backend_;
  int64_t capacity_;
  std::vector<Recompute> policy_;
  std::vector<int64_t> offloaded_index_;        // [L]
  std::vector<std::vector<Offloaded>> copied_;  // [passes] all offloaded inputs but the last kRing
  std::vector<OfPass<Arena::Id>> ids_;          // [passes]; -1 = no such slot
  std::vector<OfPass<Tensor>> slots_;
};

}  // namespace utrain
