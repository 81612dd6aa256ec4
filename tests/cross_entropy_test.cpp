// Cross entropy of the head's logits, chunk by chunk, on the rows that have a target.
#include "cross_entropy_case.h"

namespace utrain {
namespace {

struct Loss : CrossEntropyCase {
  Loss(const std::vector<int64_t>& lengths, int64_t C, int64_t V, int64_t chunk, double spread = 1)
      : CrossEntropyCase{Documents(lengths, 2, V), chunk, {}, random_matrix(V, C, 2)} {
    x = random_matrix(documents.n_rows(), C, 1, spread);
    round_to_float(W);
  }
  Result run(DType dtype, bool with_dx, double before = 0.0, double dloss = kDloss,
             double scale = 0.0) const {
    return run_on(Operands(dtype), with_dx, before, scale, dloss);
  }
  // dx and dW hold dloss times the gradient: the number that the oracles choose goes in as dloss.
  Operation operation() {
    return {{&x, &W},
            [this](DType dtype) { return run(dtype, false).loss; },
            [this](DType dtype, const Matrix& dy) {
              const Result result = run(dtype, true, 0.0, dy.real(0, 0));
              return std::vector<Matrix>{result.dx, result.dW};
            }};
  }
};

double definition(const Loss& loss) {
  double total = 0.0;
  for (int64_t m = 0; m < loss.documents.n_targets(); ++m) {
    std::vector<double> logits(loss.W.rows);
    double sum = 0.0;
    for (int64_t v = 0; v < loss.W.rows; ++v) {
      for (int64_t c = 0; c < loss.W.cols; ++c) {
        logits[v] += loss.x.real(loss.documents.target_rows[m], c) * loss.W.real(v, c);
      }
      sum += std::exp(logits[v]);
    }
    total += std::log(sum) - logits[loss.documents.targets[m]];
  }
  return total;
}

TEST(CrossEntropy, IsItsDefinition) {
  const Loss loss({9, 1, 7}, 5, 1100, 4);
  const double found = loss.run(DType::f64, false).loss.real(0, 0), wanted = definition(loss);
  EXPECT_LE(std::abs(found - wanted) / wanted, tolerance::kDouble);
}

TEST(CrossEntropy, ComplexStep) {
  for (const int64_t chunk : {1, 3, 64}) {
    expect_complex_step(Loss({5, 1, 4}, 3, 11, chunk).operation());
  }
}

TEST(CrossEntropy, Adjoint) {
  expect_adjoint(Loss({60, 1, 33}, 31, 600, 16).operation());
}

TEST(CrossEntropy, Float) {
  Loss loss({60, 1, 33}, 65, 1100, 16);
  round_to_float(loss.x);
  const Loss::Result found = loss.run(DType::f32, true), wanted = loss.run(DType::f64, true);
  EXPECT_LE(largest_error(found.loss, wanted.loss), tolerance::kFloatLoss);
  expect_close(found.dx, wanted.dx, tolerance::kFloatMatmul);
  expect_close(found.dW, wanted.dW, tolerance::kFloatMatmul);
}

TEST(CrossEntropy, SameBits) {
  expect_same_bits(Loss({60, 1, 33}, 65, 1100, 16).operation(), {1, 1});
  expect_same_bits(Loss({60, 1, 33}, 65, 1100, 16).operation(), {2, 2});
}

TEST(CrossEntropy, ChunksDoNotMatter) {
  const Loss one({9, 1, 7}, 5, 40, 1), all({9, 1, 7}, 5, 40, 100);
  const Loss::Result by_one = one.run(DType::f64, true), at_once = all.run(DType::f64, true);
  EXPECT_LE(largest_error(by_one.loss, at_once.loss), tolerance::kDouble);
  EXPECT_LE(largest_error(by_one.dx, at_once.dx), tolerance::kDouble);
  EXPECT_LE(largest_error(by_one.dW, at_once.dW), tolerance::kDouble);
}

TEST(CrossEntropy, LossIsAddedAndOtherRowsAreZero) {
  const Loss loss({9, 1, 7}, 5, 40, 4);
  const Loss::Result result = loss.run(DType::f64, true, 100.0);
  const double alone = loss.run(DType::f64, false).loss.real(0, 0);
  EXPECT_LE(std::abs(result.loss.real(0, 0) - 100.0 - alone) / 100.0, tolerance::kDouble);
  Matrix dW = loss.run(DType::f64, true).dW;
  for (Complex& value : dW.values) value += 100.0;
  EXPECT_LE(largest_error(result.dW, dW), tolerance::kDouble);
  EXPECT_TRUE(loss.run(DType::f64, false, 100.0).dW == Matrix(40, 5, 100.0)) << "loss alone";
  std::vector<bool> has_target(loss.x.rows);
  for (const int32_t row : loss.documents.target_rows) has_target[row] = true;
  for (int64_t n = 0; n < loss.x.rows; ++n) {
    double size = 0.0;
    for (int64_t c = 0; c < 5; ++c) size += std::abs(result.dx.real(n, c));
    EXPECT_EQ(size > 0.0, has_target[n]) << "row " << n;
  }
}

TEST(CrossEntropy, ScaleMultipliesTheGradientAndNotTheLoss) {
  const Loss loss({9, 1, 7}, 5, 40, 4);
  const Loss::Result wanted = loss.run(DType::f64, true, 0.0, 1024 * kDloss);
  const Loss::Result found = loss.run(DType::f64, true, 0.0, kDloss, 1024.0);
  EXPECT_TRUE(found.loss == wanted.loss);
  EXPECT_TRUE(found.dx == wanted.dx);
  EXPECT_TRUE(found.dW == wanted.dW);
}

TEST(CrossEntropy, NoTargets) {
  const Loss loss({1, 1, 1}, 5, 40, 4);
  ASSERT_EQ(loss.documents.n_targets(), 0);
  const Loss::Result result = loss.run(DType::f32, true, 2.5);
  EXPECT_EQ(result.loss.real(0, 0), 2.5);
  EXPECT_TRUE(result.dx == Matrix(5, 5));
  EXPECT_TRUE(result.dW == Matrix(40, 5, 2.5));
}

// Logits of some hundreds: without the maximum exp would overflow.
TEST(CrossEntropy, LargeLogits) {
  Loss loss({9}, 5, 40, 4, 300.0);
  round_to_float(loss.x);
  const Loss::Result found = loss.run(DType::f32, true), wanted = loss.run(DType::f64, true);
  EXPECT_LE(largest_error(found.loss, wanted.loss), tolerance::kFloatLoss);
  expect_close(found.dx, wanted.dx, tolerance::kFloatLargeScores);
}

TEST(CrossEntropy, RefusesTargetsOutsideTheVocabulary) {
  Loss loss({9}, 5, 40, 4);
  loss.documents.targets[0] = 40;
  EXPECT_THROW(loss.run(DType::f32, true), Error);
}

}  // namespace
}  // namespace utrain
