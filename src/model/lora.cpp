#include "model/lora.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>

#include "core/convert.h"
#include "core/flat_block.h"
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

Tensor Trainable::in(const Tensor& flat) const {
  Tensor view = flat.columns(offset, rows * cols);
  return make_tensor(view.data, view.dtype, rows, cols);
}

TrainableLayout::TrainableLayout(const Architecture& architecture, const LoraOptions& lora) {
  for (int64_t layer = 0; layer < architecture.n_layers; ++layer) {
    std::vector<Trainable> of_layer;
    for (const Projection p : lora.targets) {
      const ProjectionShape shape = shape_of(p, architecture);
      of_layer.push_back({adapter_tensor_name(layer, p, 'A'), layer, p, 'A', lora.r, shape.in, 0});
      of_layer.push_back({adapter_tensor_name(layer, p, 'B'), layer, p, 'B', shape.out, lora.r, 0});
    }
    std::sort(of_layer.begin(), of_layer.end(),
              [](const Trainable& a, const Trainable& b) { return a.name < b.name; });
    for (Trainable& t : of_layer) {
      t.offset = n_elem_;
      n_elem_ += (t.rows * t.cols + kFlatBlock - 1) / kFlatBlock * kFlatBlock;
      n_parameters_ += t.rows * t.cols;
      tensors_.push_back(std::move(t));
    }
    layer_begin_.push_back(n_elem_);
  }
}

void init_trainables(const TrainableLayout& layout, uint64_t seed, float* flat) {
  std::fill_n(flat, layout.n_elem(), 0.0f);
  for (const Trainable& t : layout.tensors()) {
    if (t.which != 'A') continue;
    const uint64_t key = mix(seed ^ XXH3_64bits(t.name.data(), t.name.size()));
    const float bound = 1.0f / std::sqrt(static_cast<float>(t.cols));
    for (int64_t i = 0; i < t.rows * t.cols; ++i) {
      const Philox words =
          philox(key, static_cast<uint32_t>(i / 4), static_cast<uint32_t>(i >> 34), 0, 0);
      flat[t.offset + i] = (2.0f * uniform(words.x[i % 4]) - 1.0f) * bound;
    }
  }
}

Adapters::Adapters(const Architecture& architecture, const LoraOptions& lora, Backend& backend,
                   Arena& arena)
    : architecture_(architecture), lora_(lora), layout_(architecture, lora), backend_(backend) {
  const DType wide = backend.trainable_dtype();
  const int64_t n = layout_.n_elem();
  parameters_id_ = arena.declare("adapters", wide, 1, n, MemoryClass::adapters);
  gradients_id_ = arena.declare("adapter gradients", wide, 1, n, MemoryClass::gradients);
  compute_id_ = backend.dtype() == wide
                    ? parameters_id_
                    : arena.declare("adapters as computed with", backend.dtype(), 1, n,
                                    MemoryClass::adapters);
  adapters_.resize(static_cast<size_t>(architecture.n_layers) * kGroups.size());
}

void Adapters::bind(const Arena& arena) {
  parameters_ = arena[parameters_id_];
  gradients_ = arena[gradients_id_];
  compute_ = arena[compute_id_];
  for (const Trainable& a : layout_.tensors()) {
    if (a.which != 'A') continue;
    // In PEFT's order B follows A.
    const Trainable& b = *(&a + 1);
    ASSERT(b.which == 'B' && b.projection == a.projection && b.layer == a.layer);
    LoraAdapter adapter;
    adapter.row_begin = row_begin_of(a.projection, architecture_);
    adapter.site = static_cast<uint32_t>(a.layer * 7 + static_cast<int64_t>(a.projection));
    adapter.A = a.in(compute_);
    adapter.B = b.in(compute_);
    adapter.dA = a.in(gradients_);
    adapter.dB = b.in(gradients_);
    const auto group = group_of(a.projection);
    adapters_[static_cast<size_t>(a.layer) * kGroups.size() + static_cast<size_t>(group)].push_back(
        adapter);
  }
  for (auto& group : adapters_) {
    std::sort(group.begin(), group.end(),
              [](const LoraAdapter& x, const LoraAdapter& y) { return x.site < y.site; });
  }
}

void Adapters::set_parameters(const float* flat) {
  const int64_t n = layout_.n_elem();
  std::vector<std::byte> bytes(static_cast<size_t>(n * size_of(parameters_.dtype)));
  from_float(parameters_.dtype, flat, n, bytes.data());
  backend_.upload(parameters_.data, bytes.data(), static_cast<int64_t>(bytes.size()));
  parameters_changed();
}

void Adapters::parameters_changed() {
  if (compute_.data != parameters_.data) backend_.convert(compute_, parameters_);
}

std::vector<float> Adapters::on_host(const Tensor& flat) const {
  std::vector<std::byte> bytes(static_cast<size_t>(flat.cols * size_of(flat.dtype)));
  backend_.download(bytes.data(), flat.data, static_cast<int64_t>(bytes.size()));
  std::vector<float> out(static_cast<size_t>(flat.cols));
  to_float(flat.dtype, bytes.data(), flat.cols, out.data());
  return out;
}

std::vector<float> Adapters::parameters_on_host() const {
  return on_host(parameters_);
}

std::vector<float> Adapters::gradients_on_host() const {
  return on_host(gradients_);
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
