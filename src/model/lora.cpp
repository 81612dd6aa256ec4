#include "model/lora.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/random.h"
#include "io/peft_adapter.h"

namespace utrain {

double LoraOptions::scaling() const {
  return use_rslora ? alpha / std::sqrt(static_cast<double>(r)) : alpha / static_cast<double>(r);
}

ProjectionShape shape_of(Projection p, const Architecture& a) {
  switch (p) {
    case Projection::q: return {a.hidden_size, a.n_heads * a.head_dim};
    case Projection::k:
    case Projection::v: return {a.hidden_size, a.n_kv_heads * a.head_dim};
    case Projection::o: return {a.n_heads * a.head_dim, a.hidden_size};
    case Projection::gate:
    case Projection::up: return {a.hidden_size, a.intermediate_size};
    case Projection::down: return {a.intermediate_size, a.hidden_size};
  }
  return {0, 0};
}

int64_t row_begin_of(Projection p, const Architecture& a) {
  switch (p) {
    case Projection::k: return a.n_heads * a.head_dim;
    case Projection::v: return (a.n_heads + a.n_kv_heads) * a.head_dim;
    case Projection::up: return a.intermediate_size;
    default: return 0;
  }
}

TrainableLayout lora_layout(const Architecture& architecture, const LoraOptions& lora) {
  TrainableLayout layout;
  for (int64_t layer = 0; layer < architecture.n_layers; ++layer) {
    std::vector<Trainable> of_layer;
    for (const Projection p : lora.targets) {
      const ProjectionShape shape = shape_of(p, architecture);
      of_layer.push_back(
          {.name = adapter_tensor_name(layer, p, 'A'), .rows = lora.r, .cols = shape.in});
      of_layer.push_back(
          {.name = adapter_tensor_name(layer, p, 'B'), .rows = shape.out, .cols = lora.r});
    }
    std::sort(of_layer.begin(), of_layer.end(),
              [](const Trainable& a, const Trainable& b) { return a.name < b.name; });
    for (Trainable& t : of_layer) layout.add(std::move(t), true);
    layout.end_unit();
  }
  layout.end_unit();
  return layout;
}

void init_trainables(const TrainableLayout& layout, uint64_t seed, float* flat) {
  std::fill_n(flat, layout.n_elem(), 0.0f);
  for (const Trainable& t : layout.tensors()) {
    if (!t.name.ends_with(".lora_A.weight")) continue;
    const uint64_t key = mix(seed ^ XXH3_64bits(t.name.data(), t.name.size()));
    const float bound = 1.0f / std::sqrt(static_cast<float>(t.cols));
    for (int64_t i = 0; i < t.rows * t.cols; ++i) {
      const Philox words =
          philox(key, static_cast<uint32_t>(i / 4), static_cast<uint32_t>(i >> 34), 0, 0);
      flat[t.offset + i] = (2.0f * uniform(words.x[i % 4]) - 1.0f) * bound;
    }
  }
}

Adapters::Adapters(const Architecture& architecture, const LoraOptions& lora)
    : architecture_(architecture), lora_(lora), layout_(lora_layout(architecture, lora)) {
  adapters_.resize(static_cast<size_t>(architecture.n_layers) * kGroups.size());
}

void Adapters::bind(const std::vector<Tensor>& values, const std::vector<Tensor>& gradients) {
  std::map<std::string, const Trainable*> by_name;
  for (const Trainable& t : layout_.tensors()) by_name[t.name] = &t;
  adapters_.assign(static_cast<size_t>(architecture_.n_layers) * kGroups.size(), {});
  for (int64_t layer = 0; layer < architecture_.n_layers; ++layer) {
    const auto unit = static_cast<size_t>(layer);
    for (const Projection p : kProjections) {  // ascending row_begin
      if (std::count(lora_.targets.begin(), lora_.targets.end(), p) == 0) continue;
      const Trainable& a = *by_name.at(adapter_tensor_name(layer, p, 'A'));
      const Trainable& b = *by_name.at(adapter_tensor_name(layer, p, 'B'));
      const int64_t begin = layout_.unit_begin()[unit];
      LoraAdapter adapter;
      adapter.row_begin = row_begin_of(p, architecture_);
      adapter.site = static_cast<uint32_t>(layer * 7 + static_cast<int64_t>(p));
      adapter.A = a.in(values[unit], begin);
      adapter.B = b.in(values[unit], begin);
      adapter.dA = a.in(gradients[unit], begin);
      adapter.dB = b.in(gradients[unit], begin);
      adapters_[unit * kGroups.size() + static_cast<size_t>(group_of(p))].push_back(adapter);
    }
  }
}

std::span<const LoraAdapter> Adapters::of(int64_t layer, Group group) const {
  return adapters_[static_cast<size_t>(layer) * kGroups.size() + static_cast<size_t>(group)];
}

int64_t Adapters::columns(Group group) const {
  int64_t n = 0;
  for (const Projection p : lora_.targets) n += group_of(p) == group ? lora_.r : 0;
  return n;
}

}  // namespace utrain
