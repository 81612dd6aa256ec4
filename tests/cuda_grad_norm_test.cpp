// Sums of squares of blocks of 1024 on the GPU, and what clip makes of them.
#include "cuda_oracle.h"
#include "grad_norm_cases.h"
#include "loss_scaling_steps.h"

namespace utrain {
namespace {

TEST(CudaGradNorm, IsExactOnIntegers) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes)
    for (const int64_t skipped : {0, 1}) expect_exact_on_integers<CudaOperands>(dtype, skipped);
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
  expect_not_finite_shown<CudaOperands>();
}

TEST(CudaGradNorm, RefusesAPartOfABlock) {
  UTRAIN_NEEDS_GPU();
  expect_a_part_of_a_block_refused<CudaOperands>();
}

TEST(CudaClip, ScalesDownToTheLargestNorm) {
  UTRAIN_NEEDS_GPU();
  expect_scaled_down_to_the_largest_norm<CudaOperands>(DType::bf16);
}

// More than a round of the block's threads; integers, so that any order gives these bits.
TEST(CudaClip, AddsManyBlocks) {
  UTRAIN_NEEDS_GPU();
  std::vector<double> sums;
  for (int i = 0; i < 41003; ++i) sums.push_back(i % 7);
  EXPECT_TRUE(clipped(CudaOperands(DType::bf16), sums, 1.0, 2.0) ==
              clipped(Operands(DType::f64), sums, 1.0, 2.0));
}

TEST(CudaClip, CountsNoUpdateWhereNumbersAreBad) {
  UTRAIN_NEEDS_GPU();
  expect_no_update_where_numbers_are_bad<CudaOperands>(DType::bf16);
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
