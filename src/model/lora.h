// The adapters of a model: which projections, where their tensors lie in the flat buffers, and how
// they start. Hu et al. 2021, arXiv:2106.09685
//   y = x W' + s drop(x) A' B',  A [r, in], B [out, r],  s = alpha / r (or alpha / sqrt r)
#pragma once

#include <string>
#include <vector>

#include "backend.h"
#include "core/projection.h"
#include "model/architecture.h"
#include "model/trainable.h"

namespace utrain {

struct LoraOptions {
  int64_t r = 16;
  double alpha = 16.0;
  bool use_rslora = false;
  std::vector<Projection> targets;  // in the order of kProjections

  double scaling() const;
};

// A and B of every target by PEFT's names, those of a layer in their order; a last unit without
// tensors.
TrainableLayout lora_layout(const Architecture& architecture, const LoraOptions& lora);

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

// The adapters as the model's operations take them: views of the values and gradients of units.
class Adapters {
 public:
  Adapters(const Architecture& architecture, const LoraOptions& lora);
  // values [units] in the model's dtype, gradients [units] in the trainable dtype; each [1, n].
  void bind(const std::vector<Tensor>& values, const std::vector<Tensor>& gradients);

  const TrainableLayout& layout() const { return layout_; }
  const LoraOptions& options() const { return lora_; }
  std::span<const LoraAdapter> of(int64_t layer, Group group) const;
  int64_t columns(Group group) const;  // of xa: adapters of the group * r

 private:
  Architecture architecture_;
  LoraOptions lora_;
  TrainableLayout layout_;
  std::vector<std::vector<LoraAdapter>> adapters_;  // [layer * 4 + group]
};

}  // namespace utrain
