// A plan for a person, as a table of the four strategies side by side, and for scripts as JSON.
#pragma once

#include <string>

#include "app/plan.h"

namespace utrain {

std::string plan_table(const Plan& plan);
std::string plan_json(const Plan& plan);

}  // namespace utrain
