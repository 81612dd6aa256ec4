// What is trained, as ONE flat buffer: tensors in a fixed order, by unit. Units are what is
// gathered and reduced at a time: a layer each, and at last the ends of the model (embedding, final
// norm, head), which are empty where adapters alone are trained. A unit is whole blocks
// (core/flat_block.h), independent of the number of ranks; what no tensor covers stays zero. Ranks,
// ZeRO stages and checkpoints share this layout.
#pragma once

#include <string>
#include <vector>

#include "core/tensor.h"

namespace utrain {

struct Trainable {
  std::string name;  // as the output file has it
  int64_t unit = 0;
  int64_t rows = 0, cols = 0;
  int dims = 2;        // of its shape in files; rows = 1 where it is 1
  int64_t offset = 0;  // elements, in the flat buffer

  int64_t n_elem() const { return rows * cols; }
  bool decays() const { return dims >= 2; }  // by AdamW's weight decay
  // Its view of a part [1, n] of the flat buffer that starts at element `begin`.
  Tensor in(const Tensor& part, int64_t begin = 0) const;
  std::vector<int64_t> shape() const;  // in files
};

class TrainableLayout {
 public:
  // Appends to the unit that is being made; tensor.offset is set here. aligned: to a new block, as
  // the first of a unit always is.
  void add(Trainable tensor, bool aligned);
  void end_unit();

  const std::vector<Trainable>& tensors() const { return tensors_; }
  int64_t n_elem() const { return unit_begin_.back(); }   // whole blocks
  int64_t n_parameters() const { return n_parameters_; }  // without the padding
  int64_t n_units() const { return static_cast<int64_t>(unit_begin_.size()) - 1; }
  // [units + 1] first element of each unit, and the end of the last.
  const std::vector<int64_t>& unit_begin() const { return unit_begin_; }

 private:
  std::vector<Trainable> tensors_;
  std::vector<int64_t> unit_begin_ = {0};
  int64_t end_ = 0;  // of the last tensor
  int64_t n_parameters_ = 0;
};

}  // namespace utrain
