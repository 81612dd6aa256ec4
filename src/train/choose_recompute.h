// train.recompute against the memory there is.
#pragma once

#include <vector>

#include "core/memory_budget.h"
#include "model/activations.h"
#include "parallel/groups.h"
#include "train/job.h"

namespace utrain {

// The policy of every layer that train.recompute asks for; "auto" computes again as little as fits
// into the budget: first the MLP of as many layers as needed, then whole blocks. Where nothing
// fits: the one of them that takes the least memory.
std::vector<Recompute> wanted_recompute(const Job& job, Backend& backend, const Groups& groups,
                                        const MemoryBudget& budget);
// The same. Throws usage where it does not fit.
std::vector<Recompute> choose_recompute(const Job& job, Backend& backend, const Groups& groups,
                                        const MemoryBudget& budget);

}  // namespace utrain
