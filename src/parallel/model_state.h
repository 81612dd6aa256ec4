// All of a model that a rank holds: the images of the base, the adapters' values, and what is
// trained of them, as strategy and method say. The model computes on its views; who holds what is
// known here alone.
#pragma once

#include <optional>

#include "model/full.h"
#include "model/lora.h"
#include "model/transformer.h"
#include "parallel/groups.h"
#include "parallel/replicas.h"
#include "parallel/unit_residency.h"

namespace utrain {

enum class Method { lora, full };

class ModelState {
 public:
  struct Options {
    Method method = Method::lora;
    LoraOptions lora;  // of Method::lora
    Strategy strategy = Strategy::ddp;
    bool offload_optimizer = false;
    bool offload_params = false;              // the base in host memory; not where it is trained
    int64_t layers_held = kFewestLayersHeld;  // gathered, of Strategy::zero3
  };
  // Declares its memory. groups.base is groups.world where the base is trained.
  ModelState(const Architecture& architecture, const Options& options, Backend& backend,
             const Groups& groups, Arena& arena);
  ModelState(const ModelState&) = delete;
  ModelState& operator=(const ModelState&) = delete;
  void bind(const Arena& arena);  // after the arena is placed

  // Not collective. The base from its source, this rank's part of it; under Method::full these are
  // the parameters.
  void load(const WeightSource& source);
  // flat [layout().n_elem()]: the adapters' parameters. Method::lora.
  void set_adapters(const float* flat);
  // Brings what the model computes with up to date. Collective; after load and set_adapters.
  void loaded();

  // What other ranks hold too, or never changes; between steps. What lies in host memory is left
  // out: to read it takes the host's time.
  ReplicaSet replicas() const;

  const TrainableLayout& layout() const { return layout_; }
  const Adapters& adapters() const { return adapters_; }
  Trainables& trainables() { return *trainables_; }
  ModelParts parts() {
    return {weights_, full_ ? &weight_gradients_ : nullptr, adapters_, *residency_};
  }

  // [layout().n_elem()] on every rank. Collective: see Trainables.
  std::vector<float> parameters_on_host();
  std::vector<float> gradients_on_host();

 private:
  std::vector<float> on_host(const std::function<Trainables::Gathered(int64_t u)>& gather) const;

  Architecture architecture_;
  bool full_;
  Backend& backend_;
  Collectives& base_;                       // of the ranks that hold the base together
  std::vector<ImageLayout> image_layouts_;  // [units]
  Adapters adapters_;
  TrainableLayout layout_;
  std::optional<UnitStore> images_, adapter_values_;
  std::optional<Trainables> trainables_;
  std::optional<UnitResidency> residency_;
  Weights weights_, weight_gradients_;
};

}  // namespace utrain
