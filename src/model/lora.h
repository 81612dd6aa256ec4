// The adapters of a model: which projections, where their tensors lie in the flat buffers, and how
// they start. Hu et al. 2021, arXiv:2106.09685
//   y = x W' + s drop(x) A' B',  A [r, in], B [out, r],  s = alpha / r (or alpha / sqrt r)
// Trainables are ONE flat buffer in the order (layer, PEFT name); every tensor starts on a block
// (core/flat_block.h), and the rest of its last block stays zero. Ranks, ZeRO stages and
// checkpoints share this layout.
#pragma once

#include <string>
#include <vector>

#include "backend.h"
#include "core/arena.h"
#include "core/projection.h"
#include "model/architecture.h"

namespace utrain {

struct LoraOptions {
  int64_t r = 16;
  double alpha = 16.0;
  bool use_rslora = false;
  std::vector<Projection> targets;  // in the order of kProjections

  double scaling() const;
};

struct Trainable {
  std::string name;  // PEFT's: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight
  int64_t layer = 0;
  Projection projection = Projection::q;
  char which = 'A';  // 'A' [r, in] or 'B' [out, r]
  int64_t rows = 0, cols = 0;
  int64_t offset = 0;  // elements, at the start of a block

  Tensor in(const Tensor& flat) const;  // its view of a flat buffer [1, n]
};

class TrainableLayout {
 public:
  TrainableLayout(const Architecture& architecture, const LoraOptions& lora);
  const std::vector<Trainable>& tensors() const { return tensors_; }
  int64_t n_elem() const { return n_elem_; }              // of the flat buffer: whole blocks
  int64_t n_parameters() const { return n_parameters_; }  // without the padding
  // [L + 1] first element of each layer, and the end of the last.
  const std::vector<int64_t>& layer_begin() const { return layer_begin_; }

 private:
  std::vector<Trainable> tensors_;
  std::vector<int64_t> layer_begin_ = {0};
  int64_t n_elem_ = 0, n_parameters_ = 0;
};

// Input and output width of a projection.
struct ProjectionShape {
  int64_t in, out;
};
ProjectionShape shape_of(Projection p, const Architecture& architecture);
// First row of a projection in the matrix of its group.
int64_t row_begin_of(Projection p, const Architecture& architecture);

// A ~ U(-1/sqrt(in), 1/sqrt(in)), a function of (seed, tensor name, element) alone; B = 0. flat:
// n_elem floats, host.
void init_trainables(const TrainableLayout& layout, uint64_t seed, float* flat);

// Parameters and gradients on the device, and the adapters as the model's operations take them.
class Adapters {
 public:
  Adapters(const Architecture& architecture, const LoraOptions& lora, Backend& backend,
           Arena& arena);
  void bind(const Arena& arena);  // after the arena is placed

  const TrainableLayout& layout() const { return layout_; }
  const LoraOptions& options() const { return lora_; }
  const Tensor& parameters() const { return parameters_; }  // [1, n] trainable dtype
  const Tensor& gradients() const { return gradients_; }    // [1, n] trainable dtype

  void set_parameters(const float* flat);  // from the host
  std::vector<float> parameters_on_host() const;
  std::vector<float> gradients_on_host() const;
  void parameters_changed();  // refreshes the copy in the model's dtype; after every update

  std::span<const LoraAdapter> of(int64_t layer, Group group) const;
  int64_t columns(Group group) const;  // of xa: adapters of the group * r

 private:
  std::vector<float> on_host(const Tensor& flat) const;

  Architecture architecture_;
  LoraOptions lora_;
  TrainableLayout layout_;
  Backend& backend_;
  Arena::Id parameters_id_, gradients_id_, compute_id_;
  Tensor parameters_, gradients_;
  Tensor compute_;  // the parameters in the model's dtype; the same memory where they agree
  std::vector<std::vector<LoraAdapter>> adapters_;  // [layer * 4 + group]
};

}  // namespace utrain
