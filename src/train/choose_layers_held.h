// How many gathered layers of zero3 there is room for on a GPU: the last of a pass's way up are still
// there on its way down, and the first for the next step.
#pragma once

#include <functional>
#include <vector>

#include "model/activations.h"
#include "parallel/groups.h"
#include "train/job.h"

namespace utrain {

// As many as fit, at most kMostLayersHeld: more would save little more of the gathers, and zero3 is
// taken to save memory. kFewestLayersHeld where nothing is gathered, or it comes from host memory.
// policy, passes_together: what was chosen before. Ranks must agree on the least of their answers.
int64_t choose_layers_held(const Job& job, Backend& backend, const Groups& groups,
                           const std::vector<Recompute>& policy, int64_t passes_together,
                           const std::function<bool(const Arena&)>& fits);

inline constexpr int64_t kMostLayersHeld = 8;

}  // namespace utrain
