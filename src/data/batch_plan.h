// Which rows make up each optimizer step, and how a step's rows are dealt to ranks and passes.
// A step is a function of (rows, global_batch_size, shuffle, seed, step number): any step is found
// without running those before it, and ranks appear only in passes_of_rank.
#pragma once

#include <cstdint>
#include <vector>

#include "data/rows.h"

namespace utrain {

class BatchPlan {
 public:
  struct Step {
    int64_t epoch = 0;  // from 0
    // Indices into Rows::rows: global_batch_size of them, fewer at the end of an epoch.
    std::vector<int64_t> rows;
    int64_t n_targets = 0;  // of all rows of the step: the loss divides by it
    int64_t n_tokens = 0;
  };

  // Keeps nothing of data or rows.
  BatchPlan(const TokenDataSet& data, const Rows& rows, int64_t global_batch_size, bool shuffle,
            uint64_t seed);

  int64_t steps_per_epoch() const;  // ceil(rows / global_batch_size)
  // k from 1. Keeps the permutation of the epoch: not for several threads at once.
  Step step(int64_t k) const;

 private:
  struct RowSize {
    int64_t n_tokens = 0, n_targets = 0;
  };
  std::vector<RowSize> sizes_;  // [rows]
  int64_t global_batch_size_;
  bool shuffle_;
  uint64_t seed_;
  mutable int64_t cached_epoch_ = -1;
  mutable std::vector<int64_t> order_;  // [rows] of cached_epoch_
};

// The passes of one rank: at most micro_batch_size rows each. Ranks hold contiguous blocks of
// `rows` that differ by at most one row (the first ones have it more) and run equally many passes,
// so the last may be empty.
std::vector<std::vector<int64_t>> passes_of_rank(const std::vector<int64_t>& rows, int rank,
                                                 int ranks, int64_t micro_batch_size);

}  // namespace utrain
