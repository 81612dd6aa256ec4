// What parallel.strategy costs that it need not cost, with numbers, for the table before the first
// step: from plans of one pass, in well below a second.
#pragma once

#include <string>

#include "app/plan.h"

namespace utrain {

// One line, or empty. flops_per_second: of a rank; 0 = not known. job: as before when it returns.
std::string strategy_warning(Job& job, const PlanMachine& machine, int n_nodes,
                             double flops_per_second);

}  // namespace utrain
