// block_sums[b] = sum of x^2 over elements [1024 b, 1024 b + 1024)
//   x [1, n] T, n % 1024 == 0   block_sums [1, n / 1024] or [n / 1024, 1] double (T where wider) =
//   Accumulates in double.
// clip: norm = sqrt(sum of block_sums) / scale
//       grad_scale = min(1, max_grad_norm / (norm + 1e-6)) / scale
//   Pascanu et al. 2013, arXiv:1211.5063; the 1e-6 is that of torch's clip_grad_norm_. The scale is
//   that of the loss, and the next one as LossScaling says: Micikevicius et al. 2018,
//   arXiv:1710.03740
//   state [1, kStepStates] double, indexed by StepState, updated in place
//   The blocks are added in order, so the norm does not depend on how they were dealt out.
#pragma once

#include <algorithm>
#include <cmath>

#include "backend.h"
#include "core/flat_block.h"
#include "cpu/view.h"

namespace utrain::cpu {

template <class T>
void sum_of_squares(View<Wide<T>> block_sums, View<T> x) {
  const int64_t n_blocks = x.cols / kFlatBlock;
  ASSERT(x.rows == 1 && x.cols % kFlatBlock == 0);
  ASSERT(block_sums.is(1, n_blocks) || (block_sums.is(n_blocks, 1) && block_sums.ld == 1));
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < n_blocks; ++b) {
    const T* x_b = x.data + b * kFlatBlock;
    Wide<T> sum = 0;
    if constexpr (is_real<T>) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < kFlatBlock; ++i) sum += static_cast<double>(x_b[i]) * x_b[i];
    } else {
      for (int64_t i = 0; i < kFlatBlock; ++i) sum += x_b[i] * x_b[i];
    }
    block_sums.data[b] = sum;
  }
}

// What was found of a step, and the scale that its loss had, decide about the next one.
template <class At>
void update_loss_scale(At at, bool is_finite, bool overflowed, const LossScaling& scaling) {
  at(StepState::overflowed) = overflowed ? 1.0 : 0.0;
  at(StepState::n_overflows) += overflowed ? 1.0 : 0.0;
  at(StepState::good_steps) = is_finite ? at(StepState::good_steps) + 1.0 : 0.0;
  double& scale = at(StepState::loss_scale);
  double& hysteresis = at(StepState::hysteresis_left);
  if (overflowed && hysteresis > 1.0) {
    hysteresis -= 1.0;
  } else if (overflowed) {
    scale = std::max(scale / 2.0, scaling.min_scale);
  } else if (at(StepState::good_steps) >= static_cast<double>(scaling.window)) {
    scale *= 2.0;
    hysteresis = static_cast<double>(scaling.hysteresis);
    at(StepState::good_steps) = 0.0;
  }
}

template <class T>
void clip(View<double> state, View<T> loss, View<T> block_sums, double max_grad_norm,
          const LossScaling& scaling) {
  ASSERT(state.is(1, kStepStates) && loss.is(1, 1));
  const auto at = [&](StepState i) -> double& { return state.data[static_cast<int>(i)]; };
  double sum = 0.0;
  for (int64_t b = 0; b < block_sums.cols; ++b) sum += real_of(block_sums.data[b]);
  const double scale = scaling.dynamic ? at(StepState::loss_scale) : 1.0;
  const double norm = std::sqrt(sum) / scale;
  const bool loss_is_finite = std::isfinite(real_of(loss.data[0]));
  const bool is_finite = std::isfinite(norm) && loss_is_finite;
  const double clipping = max_grad_norm > 0.0 ? std::min(1.0, max_grad_norm / (norm + 1e-6)) : 1.0;
  at(StepState::loss) = real_of(loss.data[0]);
  at(StepState::grad_norm) = norm;
  at(StepState::grad_scale) = clipping / scale;
  at(StepState::is_finite) = is_finite ? 1.0 : 0.0;
  at(StepState::n_updates) += is_finite ? 1.0 : 0.0;
  at(StepState::loss_scale) = scale;
  if (!scaling.dynamic) return;
  const bool overflowed = loss_is_finite && !is_finite && scale > scaling.min_scale;
  update_loss_scale(at, is_finite, overflowed, scaling);
}

}  // namespace utrain::cpu
