#include "data/batch_plan.h"

#include <algorithm>

#include "core/error.h"
#include "core/permutation.h"

namespace utrain {

BatchPlan::BatchPlan(const TokenDataSet& data, const Rows& rows, int64_t global_batch_size,
                     bool shuffle, uint64_t seed)
    : global_batch_size_(global_batch_size), shuffle_(shuffle), seed_(seed) {
  ASSERT(global_batch_size >= 1 && rows.n_rows() >= 1);
  sizes_.resize(rows.n_rows());
  for (int64_t r = 0; r < rows.n_rows(); ++r)
    for (const Piece& piece : rows.rows[r]) {
      sizes_[r].n_tokens += piece.length;
      sizes_[r].n_targets += data.n_targets(piece.document, piece.length);
    }
}

int64_t BatchPlan::steps_per_epoch() const {
  const int64_t n_rows = static_cast<int64_t>(sizes_.size());
  return n_rows / global_batch_size_ + (n_rows % global_batch_size_ != 0);
}

BatchPlan::Step BatchPlan::step(int64_t k) const {
  ASSERT(k >= 1);
  const int64_t n_rows = static_cast<int64_t>(sizes_.size());
  Step step;
  step.epoch = (k - 1) / steps_per_epoch();
  if (step.epoch != cached_epoch_) {
    order_ =
        shuffle_ ? permutation(n_rows, permutation_key(seed_, step.epoch)) : file_order(n_rows);
    cached_epoch_ = step.epoch;
  }
  const int64_t first = (k - 1) % steps_per_epoch() * global_batch_size_;
  const int64_t last = first + std::min(global_batch_size_, n_rows - first);
  step.rows.assign(order_.begin() + first, order_.begin() + last);
  for (const int64_t row : step.rows) {
    step.n_targets += sizes_[row].n_targets;
    step.n_tokens += sizes_[row].n_tokens;
  }
  return step;
}

std::vector<std::vector<int64_t>> passes_of_rank(const std::vector<int64_t>& rows, int rank,
                                                 int ranks, int64_t micro_batch_size) {
  ASSERT(0 <= rank && rank < ranks && micro_batch_size >= 1);
  const int64_t n = static_cast<int64_t>(rows.size());
  const int64_t least = n / ranks, n_larger = n % ranks;
  const int64_t begin = rank * least + std::min<int64_t>(rank, n_larger);
  const int64_t end = begin + least + (rank < n_larger);
  const int64_t most = least + (n_larger > 0);
  std::vector<std::vector<int64_t>> passes(most / micro_batch_size +
                                           (most % micro_batch_size != 0));
  for (int64_t i = begin; i < end; ++i) passes[(i - begin) / micro_batch_size].push_back(rows[i]);
  return passes;
}

}  // namespace utrain
