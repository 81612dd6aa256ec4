// Sums of squares of blocks of 1024, what clip makes of them, and of the scale of the loss.
#include "loss_scaling_steps.h"
#include "oracle.h"

namespace utrain {
namespace {

Matrix block_sums(DType dtype, const Matrix& x) {
  Operands operands(dtype);
  const Tensor sums = operands.output(1, x.cols / 1024, operands.backend().loss_dtype());
  operands.backend().sum_of_squares(sums, operands.input(x));
  return operands.read(sums);
}

// Integers up to 64: every square and every sum is exact, so any order gives these bits.
TEST(GradNorm, IsExactOnIntegers) {
  Matrix x(1, 5 * 1024), wanted(1, 5);
  for (int64_t i = 0; i < x.cols; ++i) {
    x.at(0, i) = static_cast<double>((i * 37) % 129 - 64);
    wanted.at(0, i / 1024) += x.real(0, i) * x.real(0, i);
  }
  for (const DType dtype : {DType::f32, DType::f64, DType::c128}) {
    EXPECT_TRUE(block_sums(dtype, x) == wanted) << name_of(dtype);
  }
}

TEST(GradNorm, FloatIsSummedInDouble) {
  Matrix x = random_matrix(1, 3 * 1024, 1);
  round_to_float(x);
  EXPECT_LE(largest_error(block_sums(DType::f32, x), block_sums(DType::f64, x)),
            tolerance::kDouble);
}

TEST(GradNorm, ShowsWhatIsNotFinite) {
  Matrix x(1, 2048, 1.0);
  x.at(0, 1500) = std::numeric_limits<double>::infinity();
  const Matrix sums = block_sums(DType::f32, x);
  EXPECT_EQ(sums.real(0, 0), 1024.0);
  EXPECT_TRUE(std::isinf(sums.real(0, 1)));
}

TEST(GradNorm, ThreadsDoNotMatter) {
  const Matrix x = random_matrix(1, 9 * 1024, 1);
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Matrix one = block_sums(DType::f32, x);
  omp_set_num_threads(2);
  EXPECT_TRUE(block_sums(DType::f32, x) == one);
  omp_set_num_threads(before);
}

TEST(GradNorm, RefusesAPartOfABlock) {
  EXPECT_THROW(block_sums(DType::f32, Matrix(1, 1023)), Error);
}

// Columns of the state.
constexpr auto kLoss = static_cast<int64_t>(StepState::loss),
               kGradNorm = static_cast<int64_t>(StepState::grad_norm),
               kGradScale = static_cast<int64_t>(StepState::grad_scale),
               kIsFinite = static_cast<int64_t>(StepState::is_finite),
               kNUpdates = static_cast<int64_t>(StepState::n_updates);

// State of a step with these block sums, 3 updates made before.
Matrix clipped(const std::vector<double>& sums, double loss, double max_grad_norm) {
  Operands operands(DType::f32);
  Matrix state(1, kStepStates), blocks(1, static_cast<int64_t>(sums.size()));
  state.at(0, static_cast<int>(StepState::n_updates)) = 3.0;
  for (size_t i = 0; i < sums.size(); ++i) blocks.values[i] = sums[i];
  const Tensor x = operands.input(state, DType::f64);
  operands.backend().clip(x, operands.input(Matrix(1, 1, loss), DType::f64),
                          operands.input(blocks, DType::f64), max_grad_norm, {});
  return operands.read(x);
}

TEST(Clip, ScalesDownToTheLargestNorm) {
  Matrix state = clipped({9.0, 16.0}, 1.0, 2.0);
  EXPECT_EQ(state.real(0, kLoss), 1.0);
  EXPECT_EQ(state.real(0, kGradNorm), 5.0);
  EXPECT_EQ(state.real(0, kGradScale), 2.0 / (5.0 + 1e-6));
  EXPECT_EQ(state.real(0, kIsFinite), 1.0);
  EXPECT_EQ(state.real(0, kNUpdates), 4.0);
  EXPECT_EQ(clipped({9.0, 16.0}, 1.0, 6.0).real(0, kGradScale), 1.0);
  EXPECT_EQ(clipped({9.0, 16.0}, 1.0, 0.0).real(0, kGradScale), 1.0);
}

TEST(Clip, CountsNoUpdateWhereNumbersAreBad) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  for (const auto& [sum, loss] :
       {std::pair{nan, 1.0}, {infinity, 1.0}, {1.0, nan}, {1.0, infinity}}) {
    const Matrix state = clipped({1.0, sum}, loss, 1.0);
    EXPECT_EQ(state.real(0, kIsFinite), 0.0);
    EXPECT_EQ(state.real(0, kNUpdates), 3.0);
  }
}

TEST(LossScaling, IsTakenOutOfNormAndUpdate) {
  expect_scale_taken_out<Operands>(DType::f32);
}
TEST(LossScaling, FollowsDeepSpeedsRules) {
  expect_deepspeeds_rules<Operands>(DType::f32);
}
TEST(LossScaling, TellsOverflowsFromBadSteps) {
  expect_overflows_told_from_bad_steps<Operands>(DType::f32);
}
TEST(LossScaling, IsOneWhereItIsNotDynamic) {
  expect_one_where_not_dynamic<Operands>(DType::f32);
}

}  // namespace
}  // namespace utrain
