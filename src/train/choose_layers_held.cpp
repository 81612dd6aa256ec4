#include "train/choose_layers_held.h"

#include <algorithm>

#include "train/trainer.h"

namespace utrain {

int64_t choose_layers_held(const Job& job, Backend& backend, const Groups& groups,
                           const std::vector<Recompute>& policy, int64_t passes_together,
                           const std::function<bool(const Arena&)>& fits) {
  const Config::Parallel& parallel = job.config.parallel;
  if (parallel.strategy != "zero3" || parallel.offload_params || groups.base.size() == 1)
    return kFewestLayersHeld;
  int64_t n = std::min(kMostLayersHeld, job.architecture.n_layers);
  while (n > kFewestLayersHeld &&
         !fits(Trainer(job, backend, groups, policy, passes_together, n).arena()))
    --n;
  return std::max(n, kFewestLayersHeld);
}

}  // namespace utrain
