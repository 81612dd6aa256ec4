// The sum of the residual stream and a branch, alone and in front of a norm.
#include "oracle.h"

namespace utrain {
namespace {

constexpr int64_t kRows = 6, kCols = 13;
constexpr double kEps = 1e-5;

TEST(Residual, AddsAlsoInPlace) {
  const Matrix x = random_matrix(kRows, kCols, 1), branch = random_matrix(kRows, kCols, 2);
  Operands operands(DType::f64);
  const Tensor h = operands.output(kRows, kCols), in_place = operands.input(x);
  operands.backend().residual_forward(h, operands.input(x), operands.input(branch));
  operands.backend().residual_forward(in_place, in_place, operands.input(branch));
  const Matrix found = operands.read(h);
  for (int64_t n = 0; n < kRows; ++n) {
    for (int64_t c = 0; c < kCols; ++c) {
      EXPECT_EQ(found.real(n, c), x.real(n, c) + branch.real(n, c));
    }
  }
  EXPECT_TRUE(operands.read(in_place) == found);
}

TEST(Residual, ThenNormIsTheTwoOperations) {
  for (const DType dtype : {DType::f32, DType::f64, DType::c128}) {
    Operands operands(dtype);
    Backend& backend = operands.backend();
    const Tensor x = operands.input(random_matrix(kRows, kCols, 1));
    const Tensor branch = operands.input(random_matrix(kRows, kCols, 2));
    const Tensor weight = operands.input(random_matrix(1, kCols, 3));
    const Tensor h = operands.output(kRows, kCols), y = operands.output(kRows, kCols);
    const Tensor rstd = operands.trainable(kRows, 1);
    backend.residual_rmsnorm_forward(h, y, rstd, x, branch, weight, kEps);

    const Tensor h2 = operands.output(kRows, kCols), y2 = operands.output(kRows, kCols);
    const Tensor rstd2 = operands.trainable(kRows, 1);
    backend.residual_forward(h2, x, branch);
    backend.rmsnorm_forward(y2, rstd2, h2, weight, kEps);
    EXPECT_TRUE(operands.read(h) == operands.read(h2));
    EXPECT_TRUE(operands.read(y) == operands.read(y2));
    EXPECT_TRUE(operands.read(rstd) == operands.read(rstd2));

    backend.residual_rmsnorm_forward(x, y2, rstd2, x, branch, weight, kEps);
    EXPECT_TRUE(operands.read(x) == operands.read(h)) << "in place";
    EXPECT_TRUE(operands.read(y2) == operands.read(y)) << "in place";
  }
}

}  // namespace
}  // namespace utrain
