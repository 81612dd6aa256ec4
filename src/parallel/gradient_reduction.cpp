#include "parallel/gradient_reduction.h"

namespace utrain {

GradientReduction::GradientReduction(Collectives& collectives, std::vector<int64_t> layer_begin,
                                     int64_t bucket_elems)
    : collectives_(collectives), layer_begin_(std::move(layer_begin)), bucket_elems_(bucket_elems) {
  ASSERT(!layer_begin_.empty() && layer_begin_.front() == 0);
}

void GradientReduction::begin(const Tensor& gradients) {
  ASSERT(gradients.n_elem() == layer_begin_.back());
  gradients_ = gradients;
  next_layer_ = static_cast<int64_t>(layer_begin_.size()) - 2;
  end_ = layer_begin_.back();
}

void GradientReduction::layer_is_final(int64_t l) {
  ASSERT(l == next_layer_);
  --next_layer_;
  const int64_t begin = layer_begin_[static_cast<size_t>(l)];
  if (end_ - begin < bucket_elems_ && l > 0) return;
  collectives_.begin_all_reduce_sum(gradients_.columns(begin, end_ - begin));
  end_ = begin;
}

void GradientReduction::finish() {
  while (next_layer_ >= 0) layer_is_final(next_layer_);
  collectives_.finish();
}

}  // namespace utrain
