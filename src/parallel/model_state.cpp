#include "parallel/model_state.h"

#include <algorithm>

#include "core/pieces.h"

namespace utrain {

namespace {

std::vector<int64_t> begins_of(const std::vector<ImageLayout>& images) {
  std::vector<int64_t> begin = {0};
  for (const ImageLayout& image : images) begin.push_back(begin.back() + image.n_elem());
  return begin;
}

// The runs of equal decay that cover the layout: what lies between tensors is zero and stays so.
std::vector<DecayRun> decay_runs(const TrainableLayout& layout) {
  std::vector<DecayRun> runs;
  const auto& tensors = layout.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t end = i + 1 < tensors.size() ? tensors[i + 1].offset : layout.n_elem();
    if (runs.empty() || runs.back().decays != tensors[i].decays())
      runs.push_back({tensors[i].offset, 0, tensors[i].decays()});
    runs.back().n_elem = end - runs.back().begin;
  }
  return runs;
}

std::vector<Tensor> units_of(const UnitStore& store) {
  std::vector<Tensor> units;
  for (int64_t u = 0; u < store.shards().n_units(); ++u) units.push_back(store.unit(u));
  return units;
}

}  // namespace

ModelState::ModelState(const Architecture& architecture, const Options& options, Backend& backend,
                       const Groups& groups, Arena& arena)
    : architecture_(architecture),
      full_(options.method == Method::full),
      backend_(backend),
      base_(groups.base),
      image_layouts_(image_layouts(architecture, backend.dtype())),
      adapters_(architecture, full_ ? LoraOptions{} : options.lora),
      layout_(full_ ? full_layout(architecture) : adapters_.layout()) {
  Collectives &world = groups.world, &base = groups.base;
  const Holding holding = options.strategy == Strategy::zero3 ? Holding::sharded : Holding::whole;
  ASSERT(!full_ || (!options.offload_params && &base == &world));
  // A frozen slice that is the whole needs no place to be gathered into.
  const Holding of_base = full_ || base.size() > 1 ? holding : Holding::whole;
  images_.emplace(UnitStore::Options{"base", backend.dtype(), MemoryClass::base, of_base,
                                     options.offload_params, options.layers_held},
                  Shards(begins_of(image_layouts_), base.rank(), base.size()), backend, base,
                  arena);
  if (!full_) {
    adapter_values_.emplace(UnitStore::Options{"adapters", backend.dtype(), MemoryClass::adapters,
                                               holding, false, options.layers_held},
                            Shards(layout_.unit_begin(), world.rank(), world.size()), backend,
                            world, arena);
  }
  trainables_.emplace(Trainables::Options{options.strategy, options.offload_optimizer},
                      decay_runs(layout_), full_ ? *images_ : *adapter_values_, backend, world,
                      arena);
  residency_.emplace(*images_, full_ ? nullptr : &*adapter_values_, *trainables_);
}

void ModelState::bind(const Arena& arena) {
  images_->bind(arena);
  if (!full_) adapter_values_->bind(arena);
  trainables_->bind(arena);
  std::vector<Tensor> gradients;
  for (int64_t u = 0; u < trainables_->n_units(); ++u)
    gradients.push_back(trainables_->gradients(u));
  weights_.bind(architecture_, units_of(*images_));
  if (full_) {
    weight_gradients_.bind(architecture_, gradients);
  } else {
    adapters_.bind(units_of(*adapter_values_), gradients);
  }
}

ReplicaSet ModelState::replicas() const {
  ReplicaSet set;
  if (!full_) {
    Replica& base = set[static_cast<size_t>(ReplicaKind::base)];
    for (int64_t u = 0; u < images_->shards().n_units(); ++u)
      if (!images_->is_in_host(u)) base.tensors.push_back(images_->home(u));
    if (images_->is_sharded()) base.slice = base_.rank(), base.slices = base_.size();
    base.is_frozen = true;
  }
  set[static_cast<size_t>(ReplicaKind::values)].tensors = trainables_->replicated_values();
  set[static_cast<size_t>(ReplicaKind::parameters)].tensors = trainables_->replicated_parameters();
  set[static_cast<size_t>(ReplicaKind::moments)].tensors = trainables_->replicated_moments();
  return set;
}

void ModelState::load(const WeightSource& source) {
  std::vector<ImageSlice> slices;
  for (size_t i = 0; i < image_layouts_.size(); ++i) {
    const auto u = static_cast<int64_t>(i);
    const ImageLayout& layout = image_layouts_[i];
    const Tensor home = images_->home(u);
    const int64_t size = size_of(layout.dtype);
    const int64_t begin = images_->is_sharded() ? images_->shards().own_begin(u) * size : 0;
    slices.push_back({&layout, home.data, begin, begin + home.cols * size, images_->is_in_host(u)});
  }
  load_images(slices, source, backend_);
  if (!full_ || trainables_->values_are_parameters()) return;
  // The parameters are read for themselves: the images may have been rounded.
  const std::vector<ImageLayout> wide = image_layouts(architecture_, DType::f32);
  for (size_t i = 0; i < wide.size(); ++i) {
    const auto u = static_cast<int64_t>(i);
    const int64_t begin = trainables_->own_begin(u), n = trainables_->own_elems(u);
    constexpr int64_t size = sizeof(float);
    for_pieces(n, [&](int64_t first, int64_t m) {
      std::vector<float> piece(static_cast<size_t>(m));
      fill_image(wide[i], source, (begin + first) * size, (begin + first + m) * size, piece.data());
      trainables_->set_parameters(u, first, piece);
    });
  }
}

void ModelState::set_adapters(const float* flat) {
  ASSERT(!full_);
  for (int64_t u = 0; u < layout_.n_units(); ++u) {
    const int64_t begin = layout_.unit_begin()[static_cast<size_t>(u)];
    const float* own = flat + begin + trainables_->own_begin(u);
    trainables_->set_parameters(u, 0, {own, static_cast<size_t>(trainables_->own_elems(u))});
  }
}

void ModelState::loaded() {
  trainables_->parameters_changed();
  const bool unit_by_unit = trainables_->is_offloaded();  // the values are then updated so
  if (!full_ || !unit_by_unit) images_->share();
  if (!full_ && !unit_by_unit) adapter_values_->share();
}

std::vector<float> ModelState::parameters_on_host() {
  return on_host([&](int64_t u) { return trainables_->gather_parameters(u); });
}

std::vector<float> ModelState::gradients_on_host() {
  return on_host([&](int64_t u) { return trainables_->gather_gradients(u); });
}

std::vector<float> ModelState::on_host(
    const std::function<Trainables::Gathered(int64_t u)>& gather) const {
  std::vector<float> flat(static_cast<size_t>(layout_.n_elem()));
  for (int64_t u = 0; u < layout_.n_units(); ++u) {
    const Trainables::Gathered unit = gather(u);
    const std::span of_unit =
        std::span(flat).subspan(static_cast<size_t>(layout_.unit_begin()[static_cast<size_t>(u)]));
    for_pieces(unit.values.cols, [&](int64_t first, int64_t n) {
      trainables_->read(unit, first,
                        of_unit.subspan(static_cast<size_t>(first), static_cast<size_t>(n)));
    });
  }
  return flat;
}

}  // namespace utrain
