// One update by AdamW, on whatever holds the operands.
#pragma once

#include "oracle.h"

namespace utrain {

struct State {
  Matrix p, m, v;
  bool operator==(const State&) const = default;
};

struct Step {
  double grad_scale = 1.0, n_updates = 1.0, is_finite = 1.0;
};

template <class Backing>
State updated(Backing&& operands, const State& state, const Matrix& g, const Step& step,
              const AdamW& options) {
  const DType trainable = operands.backend().trainable_dtype();
  const Tensor p = operands.input(state.p, trainable), m = operands.input(state.m, trainable);
  const Tensor v = operands.input(state.v, trainable);
  Matrix of_step(1, kStepStates);
  of_step.at(0, static_cast<int>(StepState::grad_scale)) = step.grad_scale;
  of_step.at(0, static_cast<int>(StepState::is_finite)) = step.is_finite;
  of_step.at(0, static_cast<int>(StepState::n_updates)) = step.n_updates;
  operands.backend().adamw_update(p, m, v, operands.input(g, trainable),
                                  operands.input(of_step, DType::f64), options);
  return {operands.read(p), operands.read(m), operands.read(v)};
}

}  // namespace utrain
