// Steps whose loss is scaled, and what clip() must make of them on any backend: Backing is Operands
// (oracle.h) or CudaOperands (cuda_oracle.h).
#pragma once

#include "oracle.h"

namespace utrain {

// A run of steps: what clip() makes of each, gradients of norm 3 times the scale or not finite.
template <class Backing>
class ScaledSteps {
 public:
  ScaledSteps(DType dtype, const LossScaling& scaling, double scale)
      : operands_(dtype), scaling_(scaling) {
    Matrix state(1, kStepStates);
    state.at(0, static_cast<int>(StepState::loss_scale)) = scale;
    state.at(0, static_cast<int>(StepState::hysteresis_left)) =
        static_cast<double>(scaling.hysteresis);
    state_ = operands_.input(state, DType::f64);
  }
  void step(bool overflows, double loss = 1.0) {
    const double norm =
        overflows ? std::numeric_limits<double>::infinity() : 3.0 * at(StepState::loss_scale);
    operands_.backend().clip(state_, operands_.input(Matrix(1, 1, loss), DType::f64),
                             operands_.input(Matrix(1, 1, norm * norm), DType::f64), 1.5, scaling_);
  }
  double at(StepState i) { return operands_.read(state_).real(0, static_cast<int64_t>(i)); }

 private:
  Backing operands_;
  LossScaling scaling_;
  Tensor state_;
};

template <class Backing>
void expect_scale_taken_out(DType dtype) {
  ScaledSteps<Backing> steps(dtype, {.dynamic = true}, 65536.0);
  steps.step(false);
  EXPECT_EQ(steps.at(StepState::grad_norm), 3.0);
  EXPECT_EQ(steps.at(StepState::grad_scale), 1.5 / (3.0 + 1e-6) / 65536.0);
  EXPECT_EQ(steps.at(StepState::is_finite), 1.0);
  EXPECT_EQ(steps.at(StepState::overflowed), 0.0);
  EXPECT_EQ(steps.at(StepState::loss_scale), 65536.0);
}

// One overflow uses up the hysteresis of two, the next ones halve; a window of good steps in a row
// doubles and gives it back.
template <class Backing>
void expect_deepspeeds_rules(DType dtype) {
  ScaledSteps<Backing> steps(dtype, {.dynamic = true, .window = 3}, 1024.0);
  const auto expect = [&](double scale, double hysteresis, double good_steps) {
    EXPECT_EQ(steps.at(StepState::loss_scale), scale);
    EXPECT_EQ(steps.at(StepState::hysteresis_left), hysteresis);
    EXPECT_EQ(steps.at(StepState::good_steps), good_steps);
  };
  steps.step(true);
  expect(1024.0, 1.0, 0.0);
  steps.step(true);
  expect(512.0, 1.0, 0.0);
  steps.step(false);
  steps.step(false);
  expect(512.0, 1.0, 2.0);
  steps.step(true);
  expect(256.0, 1.0, 0.0);
  EXPECT_EQ(steps.at(StepState::overflowed), 1.0);
  for (int i = 0; i < 3; ++i) steps.step(false);
  expect(512.0, 2.0, 0.0);
  EXPECT_EQ(steps.at(StepState::overflowed), 0.0);
  steps.step(true);
  expect(512.0, 1.0, 0.0);
  EXPECT_EQ(steps.at(StepState::n_overflows), 4.0);
  EXPECT_EQ(steps.at(StepState::n_updates), 5.0);
}

// Below the smallest scale nothing is left to try: the step is bad, as one whose loss is.
template <class Backing>
void expect_overflows_told_from_bad_steps(DType dtype) {
  ScaledSteps<Backing> steps(dtype, {.dynamic = true, .min_scale = 2.0, .hysteresis = 1}, 4.0);
  const auto expect = [&](double scale, double overflowed, double n_overflows) {
    EXPECT_EQ(steps.at(StepState::is_finite), 0.0);
    EXPECT_EQ(steps.at(StepState::loss_scale), scale);
    EXPECT_EQ(steps.at(StepState::overflowed), overflowed);
    EXPECT_EQ(steps.at(StepState::n_overflows), n_overflows);
  };
  steps.step(true, std::nan(""));
  expect(4.0, 0.0, 0.0);
  steps.step(true);
  expect(2.0, 1.0, 1.0);
  steps.step(true);
  expect(2.0, 0.0, 1.0);
}

template <class Backing>
void expect_one_where_not_dynamic(DType dtype) {
  ScaledSteps<Backing> steps(dtype, {}, 1024.0);
  steps.step(true);
  EXPECT_EQ(steps.at(StepState::loss_scale), 1.0);
  EXPECT_EQ(steps.at(StepState::overflowed), 0.0);
  steps.step(false);
  EXPECT_EQ(steps.at(StepState::grad_norm), 3.0);
  EXPECT_EQ(steps.at(StepState::good_steps), 0.0);
}

}  // namespace utrain
