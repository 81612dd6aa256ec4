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

// Passes share what is read before the next pass is computed with.
bool is_shared_by_passes(Slot slot) {
  return slot != Slot::hidden_mid;  // the next layer's input is made of it
}

// ", pass 1" of all but the first.
std::string of_pass(int64_t pass) {
  return pass == 0 ? "" : fmt::format(", pass {}", pass);
}

int64_t bytes_of(const Tensor& x) {
  return x.rows * x.ld * size_of(x.dtype);
}

}  // namespace

Activations::Activations(const Architecture& a, const Adapters& adapters, Backend& backend,
                         int64_t capacity, std::vector<Recompute> policy, Arena& arena,
                         int64_t n_passes)
    : backend_(backend), capacity_(capacity), policy_(std::move(policy)) {
  ASSERT(static_cast<int64_t>(policy_.size()) == a.n_layers && n_passes >= 1);
  const DType T = backend.dtype(), wide = backend.trainable_dtype();
  const int64_t qkv = (a.n_heads + 2 * a.n_kv_heads) * a.head_dim;
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
  int64_t n_offloaded = 0;
  for (const Recompute layer : policy_)
    offloaded_index_.push_back(layer == Recompute::offload ? n_offloaded++ : -1);
  std::array<Arena::Id, kSlots> shared;
  shared.fill(-1);
  for (int64_t pass = 0; pass < n_passes; ++pass) {
    ids_.push_back(declare_pass(pass, shapes, shared, arena));
    copied_.push_back(declare_copied(pass, shapes[static_cast<size_t>(Slot::hidden)], arena));
  }
}

// shared: slots of layers that recompute, as far as passes share them; -1 = not declared yet.
Activations::OfPass<Arena::Id> Activations::declare_pass(int64_t pass,
                                                         const std::array<Shape, kSlots>& shapes,
                                                         std::array<Arena::Id, kSlots>& shared,
                                                         Arena& arena) const {
  const auto declare = [&](const Shape& shape, const std::string& name) {
    return arena.declare(name, shape.dtype, capacity_, shape.cols, MemoryClass::activations);
  };
  std::array<Arena::Id, kSlots> own;  // the same of this pass
  own.fill(-1);
  std::array<Arena::Id, kRing> ring;
  ring.fill(-1);
  OfPass<Arena::Id> all(policy_.size() + 1);
  for (auto& ids : all) ids.fill(-1);
  for (size_t l = 0; l < policy_.size(); ++l) {
    for (size_t s = 0; s < kSlots; ++s) {
      const Shape& shape = shapes[s];
      const auto slot = static_cast<Slot>(s);
      if (shape.cols == 0) continue;
      if (keeps(policy_[l], slot)) {
        all[l][s] = declare(shape, fmt::format("{} of layer {}{}", shape.name, l, of_pass(pass)));
      } else if (slot == Slot::hidden && policy_[l] == Recompute::offload) {
        const int64_t place = offloaded_index_[l] % kRing;
        Arena::Id& id = ring[static_cast<size_t>(place)];
        if (id < 0)
          id = declare(shape, fmt::format("{} of offloaded layers, place {}{}", shape.name, place,
                                          of_pass(pass)));
        all[l][s] = id;
      } else {
        Arena::Id& id = is_shared_by_passes(slot) ? shared[s] : own[s];
        if (id < 0)
          id = declare(shape, fmt::format("{} of layers that recompute{}", shape.name,
                                          is_shared_by_passes(slot) ? "" : of_pass(pass)));
        all[l][s] = id;
      }
    }
  }
  const auto declare_last = [&](Slot slot, const char* name) {
    const auto s = static_cast<size_t>(slot);
    all.back()[s] = declare(shapes[s], name + of_pass(pass));
  };
  declare_last(Slot::hidden, "hidden after the last layer");
  declare_last(Slot::norm_rstd, "final norm rstd");
  return all;
}

std::vector<Activations::Offloaded> Activations::declare_copied(int64_t pass, const Shape& hidden,
                                                                Arena& arena) const {
  const int64_t n = std::count(policy_.begin(), policy_.end(), Recompute::offload);
  std::vector<Offloaded> inputs;
  for (size_t l = 0; l < policy_.size(); ++l) {
    if (policy_[l] != Recompute::offload || offloaded_index_[l] >= n - kRing) continue;
    const std::string name =
        fmt::format("{} of layer {}{}, on the host", hidden.name, l, of_pass(pass));
    inputs.push_back({static_cast<int64_t>(l), arena.declare(name, hidden.dtype, capacity_,
                                                             hidden.cols, MemoryClass::host)});
  }
  return inputs;
}

void Activations::bind(const Arena& arena) {
  for (const OfPass<Arena::Id>& all : ids_) {
    OfPass<Tensor>& slots = slots_.emplace_back(all.size());
    for (size_t l = 0; l < all.size(); ++l) {
      for (size_t s = 0; s < kSlots; ++s) {
        if (all[l][s] >= 0) slots[l][s] = arena[all[l][s]];
      }
    }
  }
  for (std::vector<Offloaded>& inputs : copied_) {
    for (Offloaded& input : inputs) input.host = arena[input.id];
  }
}

Tensor Activations::operator()(int64_t pass, int64_t layer, Slot slot, int64_t n) const {
  const Tensor& whole = slots_.at(static_cast<size_t>(pass))
                            .at(static_cast<size_t>(layer))[static_cast<size_t>(slot)];
  return whole.empty() ? whole : whole.first_rows(n);
}

Activations::Offloaded* Activations::copied(int64_t pass, int64_t i) {
  std::vector<Offloaded>& inputs = copied_.at(static_cast<size_t>(pass));
  if (i < 0 || i >= static_cast<int64_t>(inputs.size())) return nullptr;
  return &inputs[static_cast<size_t>(i)];
}

void Activations::forward_done(int64_t pass, int64_t layer, int64_t n) {
  const int64_t i = offloaded_index(layer);
  if (i < 0) return;
  if (Offloaded* input = copied(pass, i)) {
    const Tensor device = (*this)(pass, layer, Slot::hidden, n);
    input->copied_out = backend_.copy_out_begin(input->host.data, device.data, bytes_of(device));
  }
  // The next input takes the place of the one kRing before it.
  if (Offloaded* before = copied(pass, i + 1 - kRing)) backend_.copy_wait(before->copied_out);
}

void Activations::backward_begin(int64_t pass, int64_t layer, int64_t n) {
  const int64_t i = offloaded_index(layer);
  if (i < 0) return;
  if (Offloaded* input = copied(pass, i)) backend_.copy_wait(input->copied_in);
  // The place of the layer whose backward was called last is free for the one kRing below it.
  if (Offloaded* next = copied(pass, i + 1 - kRing)) {
    const Tensor device = (*this)(pass, next->layer, Slot::hidden, n);
    next->copied_in = backend_.copy_in_begin(device.data, next->host.data, bytes_of(device));
  }
}

}  // namespace utrain
