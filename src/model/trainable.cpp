#include "model/trainable.h"

#include "core/flat_block.h"

namespace utrain {

namespace {

int64_t whole_blocks(int64_t n) {
  return (n + kFlatBlock - 1) / kFlatBlock * kFlatBlock;
}

}  // namespace

Tensor Trainable::in(const Tensor& part, int64_t begin) const {
  const Tensor view = part.columns(offset - begin, n_elem());
  return make_tensor(view.data, view.dtype, rows, cols);
}

std::vector<int64_t> Trainable::shape() const {
  return dims == 1 ? std::vector<int64_t>{cols} : std::vector<int64_t>{rows, cols};
}

void TrainableLayout::add(Trainable tensor, bool aligned) {
  if (aligned) end_ = whole_blocks(end_);
  tensor.unit = n_units();
  tensor.offset = end_;
  end_ += tensor.n_elem();
  n_parameters_ += tensor.n_elem();
  tensors_.push_back(std::move(tensor));
}

void TrainableLayout::end_unit() {
  end_ = whole_blocks(end_);
  unit_begin_.push_back(end_);
}

}  // namespace utrain
