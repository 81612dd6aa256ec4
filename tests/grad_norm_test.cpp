// Sums of squares of blocks of 1024, what clip makes of them, and of the scale of the loss.
#include "grad_norm_cases.h"
#include "loss_scaling_steps.h"

namespace utrain {
namespace {

TEST(GradNorm, IsExactOnIntegers) {
  for (const DType dtype : {DType::f32, DType::f64, DType::c128})
    for (const int64_t skipped : {0, 1}) expect_exact_on_integers<Operands>(dtype, skipped);
}

TEST(GradNorm, FloatIsSummedInDouble) {
  Matrix x = random_matrix(1, 3 * 1024, 1);
  round_to_float(x);
  EXPECT_LE(largest_error(block_sums(Operands(DType::f32), x), block_sums(Operands(DType::f64), x)),
            tolerance::kDouble);
}

TEST(GradNorm, ShowsWhatIsNotFinite) {
  expect_not_finite_shown<Operands>();
}

TEST(GradNorm, ThreadsDoNotMatter) {
  const Matrix x = random_matrix(1, 9 * 1024, 1);
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Matrix one = block_sums(Operands(DType::f32), x);
  omp_set_num_threads(2);
  EXPECT_TRUE(block_sums(Operands(DType::f32), x) == one);
  omp_set_num_threads(before);
}

TEST(GradNorm, RefusesAPartOfABlock) {
  expect_a_part_of_a_block_refused<Operands>();
}

TEST(Clip, ScalesDownToTheLargestNorm) {
  expect_scaled_down_to_the_largest_norm<Operands>(DType::f32);
}

TEST(Clip, CountsNoUpdateWhereNumbersAreBad) {
  expect_no_update_where_numbers_are_bad<Operands>(DType::f32);
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
