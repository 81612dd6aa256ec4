// Learning rate schedules of transformers (get_linear_schedule_with_warmup and its sisters).
#pragma once

#include <cstdint>
#include <string>

namespace utrain {

// Factor of lr in step 1..total_steps, with k = step - 1: k / warmup while k < warmup; then
//   linear   (total - k) / (total - warmup)
//   cosine   (1 + cos(pi (k - warmup) / (total - warmup))) / 2
//   constant 1
double schedule_factor(const std::string& schedule, int64_t step, int64_t total_steps,
                       int64_t warmup_steps);

}  // namespace utrain
