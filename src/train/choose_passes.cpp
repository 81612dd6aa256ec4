#include "train/choose_passes.h"

#include <algorithm>

#include "train/trainer.h"

namespace utrain {

int64_t passes_of_step(const Job& job) {
  const int64_t n_rows = std::min(job.global_batch_size, job.train_rows.n_rows());
  const std::vector<int64_t> rows(static_cast<size_t>(n_rows));
  return static_cast<int64_t>(
      passes_of_rank(rows, 0, job.ranks, job.config.train.micro_batch_size).size());
}

int64_t choose_passes(const Job& job, Backend& backend, const Groups& groups,
                      const std::vector<Recompute>& policy,
                      const std::function<bool(const Arena&)>& fits) {
  const Config::Parallel& parallel = job.config.parallel;
  if (parallel.strategy != "zero3" && !parallel.offload_params) return 1;
  int64_t low = 1, high = passes_of_step(job);
  while (low < high) {
    const int64_t n = (low + high + 1) / 2;
    if (fits(Trainer(job, backend, groups, policy, n).arena()))
      low = n;
    else
      high = n - 1;
  }
  return low;
}

}  // namespace utrain
