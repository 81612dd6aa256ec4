#include "model/activations.h"

#include <algorithm>

namespace utrain {

namespace {

bool keeps(Recompute policy, Slot slot) {
  switch (policy) {
    case Recompute::keep: return true;
    case Recompute::mlp: return slot != Slot::gate_up;
    case Recompute::block: return slot == Slot::hidden || slot == Slot::xa_down;
    case Recompute::offload: return slot == Slot::xa_down;
  }
  return true;
}

int64_t bytes_of(const Tensor& x) {
  return x.rows * x.ld * size_of(x.dtype);
}

}  // namespace

Activations::Activations(const Architecture& a, const Adapters& adapters, Backend& backend,
                         int64_t capacity, std::vector<Recompute> policy, Arena& arena)
    : backend_(backend), capacity_(capacity), policy_(std::move(policy)) {
  ASSERT(static_cast<int64_t>(policy_.size()) == a.n_layers);
  const DType T = backend.dtype(), wide = backend.trainable_dtype();
  const int64_t qkv = (a.n_heads + 2 * a.n_kv_heads) * a.head_dim;
  struct Shape {
    const char* name;
    DType dtype;
    int64_t cols;  // 0 = this model has no such slot
  };
  const std::array<Shape, kSlots> shapes = {{
      {"hidden", T, a.hidden_size},
      {"norm rstd", wide, 1},
      {"qkv", T, qkv},
      {"qkv before head norms", T, a.qk_norm ? qkv : 0},
      {"head norm rstd", wide, a.qk_norm ? a.n_heads + a.n_kv_heads : 0},
      {"attention", T, a.n_heads * a.head_dim},
      {"log-sum-exp", wide, a.n_heads},
      {"hidden after attention", T, a.hidden_size},
      {"second norm rstd", wide, 1},
      {"gate_up", T, 2 * a.intermediate_size},
      {"x A' of qkv", T, adapters.columns(Group::qkv)},
      {"x A' of o", T, adapters.columns(Group::o)},
      {"x A' of gate_up", T, adapters.columns(Group::gate_up)},
      {"x A' of down", T, adapters.columns(Group::down)},
  }};
  std::array<Arena::Id, kSlots> shared;
  shared.fill(-1);
  std::array<Arena::Id, kRing> ring;
  ring.fill(-1);
  int64_t n_offloaded = 0;
  for (int64_t l = 0; l < a.n_layers; ++l) {
    std::array<Arena::Id, kSlots>& ids = ids_.emplace_back();
    for (size_t s = 0; s < kSlots; ++s) {
      const Shape& shape = shapes[s];
      ids[s] = -1;
      if (shape.cols == 0) continue;
      const auto declare = [&](const std::string& name) {
        return arena.declare(name, shape.dtype, capacity, shape.cols, MemoryClass::activations);
      };
      if (keeps(this->policy(l), static_cast<Slot>(s))) {
        ids[s] = declare(fmt::format("{} of layer {}", shape.name, l));
      } else if (static_cast<Slot>(s) == Slot::hidden && this->policy(l) == Recompute::offload) {
        const int64_t place = n_offloaded % kRing;
        Arena::Id& id = ring[static_cast<size_t>(place)];
        if (id < 0)
          id = declare(fmt::format("{} of offloaded layers, place {}", shape.name, place));
        ids[s] = id;
      } else {
        if (shared[s] < 0)
          shared[s] = declare(fmt::format("{} of layers that recompute", shape.name));
        ids[s] = shared[s];
      }
    }
    offloaded_index_.push_back(this->policy(l) == Recompute::offload ? n_offloaded++ : -1);
  }
  declare_offloaded(arena, T, a.hidden_size);
  std::array<Arena::Id, kSlots>& last = ids_.emplace_back();
  last.fill(-1);
  const auto declare_last = [&](Slot slot, const char* name) {
    const Shape& shape = shapes[static_cast<size_t>(slot)];
    last[static_cast<size_t>(slot)] =
        arena.declare(name, shape.dtype, capacity, shape.cols, MemoryClass::activations);
  };
  declare_last(Slot::hidden, "hidden after the last layer");
  declare_last(Slot::norm_rstd, "final norm rstd");
}

void Activations::declare_offloaded(Arena& arena, DType dtype, int64_t cols) {
  const int64_t n = std::count(policy_.begin(), policy_.end(), Recompute::offload);
  for (size_t l = 0; l < policy_.size(); ++l) {
    if (policy_[l] != Recompute::offload || offloaded_index_[l] >= n - kRing) continue;
    const std::string name = fmt::format("hidden of layer {}, on the host", l);
    copied_.push_back(
        {static_cast<int64_t>(l), arena.declare(name, dtype, capacity_, cols, MemoryClass::host)});
  }
}

void Activations::bind(const Arena& arena) {
  for (const auto& ids : ids_) {
    std::array<Tensor, kSlots>& slots = slots_.emplace_back();
    for (size_t s = 0; s < kSlots; ++s) {
      if (ids[s] >= 0) slots[s] = arena[ids[s]];
    }
  }
  for (Offloaded& input : copied_) input.host = arena[input.id];
}

Tensor Activations::operator()(int64_t pass, int64_t layer, Slot slot, int64_t n) const {
  ASSERT(pass == 0);  // one pass is under way at a time
  const Tensor& whole = slots_.at(static_cast<size_t>(layer))[static_cast<size_t>(slot)];
  return whole.empty() ? whole : whole.first_rows(n);
}

void Activations::forward_done(int64_t pass, int64_t layer, int64_t n) {
  const int64_t i = offloaded_index(layer);
  if (i < 0) return;
  if (is_copied(i)) {
    Offloaded& input = copied_[static_cast<size_t>(i)];
    const Tensor device = (*this)(pass, layer, Slot::hidden, n);
    input.copied_out = backend_.copy_out_begin(input.host.data, device.data, bytes_of(device));
  }
  // The next input takes the place of the one kRing before it.
  const int64_t before = i + 1 - kRing;
  if (is_copied(before)) backend_.copy_wait(copied_[static_cast<size_t>(before)].copied_out);
}

void Activations::backward_begin(int64_t pass, int64_t layer, int64_t n) {
  const int64_t i = offloaded_index(layer);
  if (i < 0) return;
  if (is_copied(i)) backend_.copy_wait(copied_[static_cast<size_t>(i)].copied_in);
  // The place of the layer whose backward was called last is free for the one kRing below it.
  const int64_t next = i + 1 - kRing;
  if (!is_copied(next)) return;
  Offloaded& input = copied_[static_cast<size_t>(next)];
  const Tensor device = (*this)(pass, input.layer, Slot::hidden, n);
  input.copied_in = backend_.copy_in_begin(device.data, input.host.data, bytes_of(device));
}

}  // namespace utrain
