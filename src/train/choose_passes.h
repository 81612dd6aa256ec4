// How many passes of a step go through the layers together, so that one gather of a layer, or one
// copy from host memory, serves them all.
#pragma once

#include <functional>
#include <vector>

#include "comm/collectives.h"
#include "model/activations.h"
#include "train/job.h"

namespace utrain {

// The most passes of this rank in a step.
int64_t passes_of_step(const Job& job);

// As many as fit, up to a step's; 1 where every rank has all weights on its device all the time.
// policy: of the layers' activations. fits: whether there is that much memory. Ranks must agree on
// the least of their answers.
int64_t choose_passes(const Job& job, Backend& backend, const Groups& groups,
                      const std::vector<Recompute>& policy,
                      const std::function<bool(const Arena&)>& fits);

}  // namespace utrain
