// What sum_of_squares() and clip() must give on any backend: Backing is Operands (oracle.h) or
// CudaOperands (cuda_oracle.h).
#pragma once

#include "oracle.h"

namespace utrain {

// The first `skipped` elements are left out: what is summed then starts unaligned.
template <class Backing>
Matrix block_sums(Backing&& operands, const Matrix& x, int64_t skipped = 0) {
  const int64_t n = x.cols - skipped;
  const Tensor sums = operands.output(1, n / 1024, operands.backend().loss_dtype());
  const Tensor input = operands.input(x, operands.backend().trainable_dtype());
  operands.backend().sum_of_squares(sums, input.columns(skipped, n));
  return operands.read(sums);
}

// Integers up to 64: every square and every sum is exact, so any order gives these bits.
template <class Backing>
void expect_exact_on_integers(DType dtype, int64_t skipped) {
  Matrix x(1, skipped + 13 * 1024), wanted(1, 13);
  for (int64_t i = 0; i < x.cols; ++i) x.at(0, i) = static_cast<double>((i * 37) % 129 - 64);
  for (int64_t i = skipped; i < x.cols; ++i)
    wanted.at(0, (i - skipped) / 1024) += x.real(0, i) * x.real(0, i);
  EXPECT_TRUE(block_sums(Backing(dtype), x, skipped) == wanted) << name_of(dtype);
}

template <class Backing>
void expect_not_finite_shown() {
  Matrix x(1, 2048, 1.0);
  x.at(0, 1500) = std::numeric_limits<double>::infinity();
  const Matrix sums = block_sums(Backing(DType::f32), x);
  EXPECT_EQ(sums.real(0, 0), 1024.0);
  EXPECT_TRUE(std::isinf(sums.real(0, 1)));
}

template <class Backing>
void expect_a_part_of_a_block_refused() {
  EXPECT_THROW(block_sums(Backing(DType::f32), Matrix(1, 1023)), Error);
}

// State of a step with these block sums, 3 updates made before.
template <class Backing>
Matrix clipped(Backing&& operands, const std::vector<double>& sums, double loss,
               double max_grad_norm) {
  Matrix state(1, kStepStates), blocks(1, static_cast<int64_t>(sums.size()));
  state.at(0, static_cast<int>(StepState::n_updates)) = 3.0;
  for (size_t i = 0; i < sums.size(); ++i) blocks.values[i] = sums[i];
  const Tensor x = operands.input(state, DType::f64);
  operands.backend().clip(x, operands.input(Matrix(1, 1, loss), DType::f64),
                          operands.input(blocks, DType::f64), max_grad_norm, {});
  return operands.read(x);
}
inline double at(const Matrix& state, StepState i) {
  return state.real(0, static_cast<int64_t>(i));
}

template <class Backing>
void expect_scaled_down_to_the_largest_norm(DType dtype) {
  const auto grad_scale = [&](double max_grad_norm) {
    return at(clipped(Backing(dtype), {9.0, 16.0}, 1.0, max_grad_norm), StepState::grad_scale);
  };
  const Matrix state = clipped(Backing(dtype), {9.0, 16.0}, 1.0, 2.0);
  EXPECT_EQ(at(state, StepState::loss), 1.0);
  EXPECT_EQ(at(state, StepState::grad_norm), 5.0);
  EXPECT_EQ(at(state, StepState::is_finite), 1.0);
  EXPECT_EQ(at(state, StepState::n_updates), 4.0);
  EXPECT_EQ(grad_scale(2.0), 2.0 / (5.0 + 1e-6));
  EXPECT_EQ(grad_scale(6.0), 1.0);
  EXPECT_EQ(grad_scale(0.0), 1.0);
}

template <class Backing>
void expect_no_update_where_numbers_are_bad(DType dtype) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  for (const auto& [sum, loss] :
       {std::pair{nan, 1.0}, {infinity, 1.0}, {1.0, nan}, {1.0, infinity}}) {
    const Matrix state = clipped(Backing(dtype), {1.0, sum}, loss, 1.0);
    EXPECT_EQ(at(state, StepState::is_finite), 0.0);
    EXPECT_EQ(at(state, StepState::n_updates), 3.0);
  }
}

}  // namespace utrain
