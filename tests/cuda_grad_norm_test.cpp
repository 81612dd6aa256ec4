// Sums of squares of blocks of 1024 on the GPU, and what clip makes of them.
#include "cuda_oracle.h"
#include "loss_scaling_steps.h"

namespace utrain {
namespace {

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
TEST(CudaGradNorm, IsExactOnIntegers) {
  UTRAIN_NEEDS_GPU();
  for (const int64_t skipped : {0, 1}) {
    Matrix x(1, skipped + 13 * 1024), wanted(1, 13);
    for (int64_t i = 0; i < x.cols; ++i) x.at(0, i) = static_cast<double>((i * 37) % 129 - 64);
    for (int64_t i = skipped; i < x.cols; ++i) {
      wanted.at(0, (i - skipped) / 1024) += x.real(0, i) * x.real(0, i);
    }
    for (const DType dtype : kCudaDTypes) {
      EXPECT_TRUE(block_sums(CudaOperands(dtype), x, skipped) == wanted) << name_of(dtype);
    }
  }
}

TEST(CudaGradNorm, IsSummedInDouble) {
  UTRAIN_NEEDS_GPU();
  Matrix x = random_matrix(1, 9 * 1024, 1);
  round_to_float(x);
  const Matrix found = block_sums(CudaOperands(DType::bf16), x);
  EXPECT_LE(largest_error(found, block_sums(Operands(DType::f64), x)), tolerance::kDouble);
  EXPECT_TRUE(block_sums(CudaOperands(DType::bf16), x) == found);
}

TEST(CudaGradNorm, ShowsWhatIsNotFinite) {
  UTRAIN_NEEDS_GPU();
  Matrix x(1, 2048, 1.0);
  x.at(0, 1500) = std::numeric_limits<double>::infinity();
  const Matrix sums = block_sums(CudaOperands(DType::f32), x);
  EXPECT_EQ(sums.real(0, 0), 1024.0);
  EXPECT_TRUE(std::isinf(sums.real(0, 1)));
}

TEST(CudaGradNorm, RefusesAPartOfABlock) {
  UTRAIN_NEEDS_GPU();
  EXPECT_THROW(block_sums(CudaOperands(DType::f32), Matrix(1, 1023)), Error);
}

// Columns of the state.
constexpr auto kLoss = static_cast<int64_t>(StepState::loss),
               kGradNorm = static_cast<int64_t>(StepState::grad_norm),
               kGradScale = static_cast<int64_t>(StepState::grad_scale),
               kIsFinite = static_cast<int64_t>(StepState::is_finite),
               kNUpdates = static_cast<int64_t>(StepState::n_updates);

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
Matrix clipped(const std::vector<double>& sums, double loss, double max_grad_norm) {
  return clipped(CudaOperands(DType::bf16), sums, loss, max_grad_norm);
}

TEST(CudaClip, ScalesDownToTheLargestNorm) {
  UTRAIN_NEEDS_GPU();
  const Matrix state = clipped({9.0, 16.0}, 1.0, 2.0);
  EXPECT_EQ(state.real(0, kLoss), 1.0);
  EXPECT_EQ(state.real(0, kGradNorm), 5.0);
  EXPECT_EQ(state.real(0, kGradScale), 2.0 / (5.0 + 1e-6));
  EXPECT_EQ(state.real(0, kIsFinite), 1.0);
  EXPECT_EQ(state.real(0, kNUpdates), 4.0);
  EXPECT_EQ(clipped({9.0, 16.0}, 1.0, 6.0).real(0, kGradScale), 1.0);
  EXPECT_EQ(clipped({9.0, 16.0}, 1.0, 0.0).real(0, kGradScale), 1.0);
}

// More than a round of the block's threads; integers, so that any order gives these bits.
TEST(CudaClip, AddsManyBlocks) {
  UTRAIN_NEEDS_GPU();
  std::vector<double> sums;
  for (int i = 0; i < 41003; ++i) sums.push_back(i % 7);
  EXPECT_TRUE(clipped(sums, 1.0, 2.0) == clipped(Operands(DType::f64), sums, 1.0, 2.0));
}

TEST(CudaClip, CountsNoUpdateWhereNumbersAreBad) {
  UTRAIN_NEEDS_GPU();
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  for (const auto& [sum, loss] :
       {std::pair{nan, 1.0}, {infinity, 1.0}, {1.0, nan}, {1.0, infinity}}) {
    const Matrix state = clipped({1.0, sum}, loss, 1.0);
    EXPECT_EQ(state.real(0, kIsFinite), 0.0);
    EXPECT_EQ(state.real(0, kNUpdates), 3.0);
  }
}

TEST(CudaLossScaling, IsTakenOutOfNormAndUpdate) {
  UTRAIN_NEEDS_GPU();
  expect_scale_taken_out<CudaOperands>(DType::f16);
}
TEST(CudaLossScaling, FollowsDeepSpeedsRules) {
  UTRAIN_NEEDS_GPU();
  expect_deepspeeds_rules<CudaOperands>(DType::f16);
}
TEST(CudaLossScaling, TellsOverflowsFromBadSteps) {
  UTRAIN_NEEDS_GPU();
  expect_overflows_told_from_bad_steps<CudaOperands>(DType::f16);
}
TEST(CudaLossScaling, IsOneWhereItIsNotDynamic) {
  UTRAIN_NEEDS_GPU();
  expect_one_where_not_dynamic<CudaOperands>(DType::f16);
}

}  // namespace
}  // namespace utrain
