#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace utrain {

double schedule_factor(const std::string& schedule, int64_t step, int64_t total_steps,
                       int64_t warmup_steps) {
  ASSERT(step >= 1 && warmup_steps >= 0);
  const auto k = static_cast<double>(step - 1), T = static_cast<double>(total_steps);
  const auto warmup = static_cast<double>(warmup_steps);
  if (k < warmup) return k / warmup;
  if (schedule == "constant") return 1.0;
  const double left = std::max(1.0, T - warmup);
  if (schedule == "linear") return std::max(0.0, (T - k) / left);
  ASSERT(schedule == "cosine");
  return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * (k - warmup) / left)));
}

}  // namespace utrain
