// Cross entropy on the GPU. Rows of x have one element, a power of two, so that the logits are
// exact in every dtype and what is measured is the softmax; one test has full rows.
#include "cross_entropy_case.h"
#include "cuda_oracle.h"

namespace utrain {
namespace {

struct Loss : CrossEntropyCase {
  Loss(DType dtype, const std::vector<int64_t>& lengths, int64_t V, int64_t chunk, int64_t C = 8)
      : CrossEntropyCase{
            Documents(lengths, 2, V), chunk, {}, rounded(dtype, random_matrix(V, C, 2, 2.0))} {
    x = Matrix(documents.n_rows(), C);
    for (int64_t n = 0; n < x.rows; ++n)
      x.at(n, n % C) = std::ldexp(n % 3 == 0 ? -1.0 : 1.0, n % 3);
  }
  template <class Backing>
  Result run(Backing&& operands, bool with_dx, double before = 0.0, double scale = 0.0) const {
    return run_on(operands, with_dx, before, scale);
  }
};

void expect_right(const Loss& loss, DType dtype, double loss_bound, double dx_bound) {
  const Loss::Result wanted = loss.run(Operands(DType::f64), true);
  for (const int64_t padding : kCudaPaddings) {
    SCOPED_TRACE(fmt::format("{}, V = {}, padding {}", name_of(dtype), loss.W.rows, padding));
    const Loss::Result found = loss.run(CudaOperands(dtype, padding), true);
    EXPECT_LE(largest_error(found.loss, wanted.loss), loss_bound);
    expect_close(found.dx, wanted.dx, dx_bound);
    expect_close(found.dW, wanted.dW, dx_bound);
    EXPECT_TRUE(loss.run(CudaOperands(dtype, padding), true) == found) << "again";
    const Loss::Result alone = loss.run(CudaOperands(dtype, padding), false);
    EXPECT_TRUE(alone.loss == found.loss) << "loss alone";
    EXPECT_TRUE(alone.dW == Matrix(loss.W.rows, loss.W.cols)) << "loss alone";
  }
}

// Vocabularies below a vector, of one pass of a block and of several, multiples of nothing.
TEST(CudaCrossEntropy, ExactLogits) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t V : {2, 5, 40, 1100, 32003, 40016}) {
      const Loss loss(dtype, {9, 1, 23}, V, V == 40 ? 4 : 100);
      expect_right(loss, dtype, tolerance::kFloatLoss, cuda_bound(dtype, tolerance::kFloatMatmul));
    }
  }
}

TEST(CudaCrossEntropy, FullRows) {
  UTRAIN_NEEDS_GPU();
  Loss loss(DType::f32, {60, 1, 33}, 1100, 16, 65);
  loss.x = random_matrix(loss.x.rows, 65, 1);
  round_to_float(loss.x);
  expect_right(loss, DType::f32, tolerance::kFloatLoss, tolerance::kFloatMatmul);
}

// Logits of some hundreds: without the maximum exp would overflow.
TEST(CudaCrossEntropy, LargeLogits) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    Loss loss(dtype, {9, 5}, 1100, 4);
    for (Complex& value : loss.x.values) value *= 256.0;
    expect_right(loss, dtype, tolerance::kFloatLoss,
                 cuda_bound(dtype, tolerance::kFloatLargeScores));
  }
}

// A power of two: the same bits, as many times larger.
TEST(CudaCrossEntropy, ScaleOfTheLoss) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t padding : kCudaPaddings) {
      SCOPED_TRACE(fmt::format("{}, padding {}", name_of(dtype), padding));
      const Loss loss(dtype, {9, 1, 23}, 1100, 4);
      Loss::Result wanted = loss.run(CudaOperands(dtype, padding), true);
      const Loss::Result found = loss.run(CudaOperands(dtype, padding), true, 0.0, 256.0);
      EXPECT_TRUE(found.loss == wanted.loss);
      for (Matrix* x : {&wanted.dx, &wanted.dW}) {
        for (Complex& value : x->values) value *= 256.0;
      }
      // Smallest numbers of float16 are exact only when scaled up.
      const double bound = cuda_bound(dtype, tolerance::kFloatElementwise);
      expect_close(found.dx, wanted.dx, bound);
      expect_close(found.dW, wanted.dW, tolerance::kFloatElementwise);
    }
  }
}

// Probabilities below the smallest normal number of float16 keep their gradient.
TEST(CudaCrossEntropy, SmallProbabilitiesDoNotVanish) {
  UTRAIN_NEEDS_GPU();
  Loss loss(DType::f16, {9, 1, 23}, 40016, 100);
  // Of one sign, so that nothing cancels but the target, which is far larger.
  for (Complex& value : loss.x.values) value = 0.5 * std::abs(value.real());
  const Loss::Result wanted = loss.run(Operands(DType::f64), true, 0.0, 1024.0);
  const Loss::Result found = loss.run(CudaOperands(DType::f16, 8), true, 0.0, 1024.0);
  for (int64_t v = 0; v < 40016; ++v) {
    for (int64_t c = 0; c < loss.W.cols; ++c) {
      const double error = std::abs(found.dW.real(v, c) - wanted.dW.real(v, c));
      ASSERT_LE(error, 1e-3 * std::abs(wanted.dW.real(v, c))) << v << ", " << c;
    }
  }
}

TEST(CudaCrossEntropy, AnOverflowIsInfinite) {
  UTRAIN_NEEDS_GPU();
  const Loss loss(DType::f16, {9, 1, 23}, 40, 100);
  const auto all_finite = [&](double scale) {
    const Loss::Result result = loss.run(CudaOperands(DType::f16), true, 0.0, scale);
    EXPECT_TRUE(std::isfinite(result.loss.real(0, 0)));
    for (const Complex& value : result.dx.values) {
      if (!std::isfinite(value.real())) return false;
    }
    return true;
  };
  EXPECT_TRUE(all_finite(1024.0));
  EXPECT_FALSE(all_finite(1048576.0));
}

TEST(CudaCrossEntropy, LossIsAddedAndOtherRowsAreZero) {
  UTRAIN_NEEDS_GPU();
  const Loss loss(DType::bf16, {9, 1, 7}, 40, 4);
  const Loss::Result result = loss.run(CudaOperands(DType::bf16), true, 100.0);
  const double alone = loss.run(CudaOperands(DType::bf16), false).loss.real(0, 0);
  EXPECT_LE(std::abs(result.loss.real(0, 0) - 100.0 - alone) / 100.0, tolerance::kDouble);
  std::vector<bool> has_target(loss.x.rows);
  for (const int32_t row : loss.documents.target_rows) has_target[row] = true;
  for (int64_t n = 0; n < loss.x.rows; ++n) {
    double size = 0.0;
    for (int64_t c = 0; c < loss.x.cols; ++c) size += std::abs(result.dx.real(n, c));
    EXPECT_EQ(size > 0.0, has_target[n]) << "row " << n;
  }
}

TEST(CudaCrossEntropy, NoTargets) {
  UTRAIN_NEEDS_GPU();
  const Loss loss(DType::f32, {1, 1, 1}, 40, 4);
  const Loss::Result result = loss.run(CudaOperands(DType::f32), true, 2.5);
  EXPECT_EQ(result.loss.real(0, 0), 2.5);
  EXPECT_TRUE(result.dx == Matrix(5, 8));
  EXPECT_TRUE(result.dW == Matrix(40, 8, 2.5));
}

TEST(CudaCrossEntropy, WhatIsNotANumberShows) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    Loss outside(dtype, {9}, 40, 4), nan = outside;
    outside.documents.targets[1] = 40;
    EXPECT_TRUE(std::isnan(outside.run(CudaOperands(dtype), true).loss.real(0, 0)));
    const int32_t row = nan.documents.target_rows[1];
    nan.x.at(row, 0) = std::nan("");
    EXPECT_TRUE(std::isnan(nan.run(CudaOperands(dtype), true).loss.real(0, 0)));
  }
}

}  // namespace
}  // namespace utrain
