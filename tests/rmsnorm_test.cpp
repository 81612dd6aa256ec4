// RMSNorm over whole rows and over heads.
#include "oracle.h"

namespace utrain {
namespace {

constexpr double kEps = 1e-3;  // large, so that leaving it out shows

struct Norm {
  int64_t G;
  Matrix x, weight;

  Norm(int64_t N, int64_t G, int64_t K)
      : G(G), x(random_matrix(N, G * K, 1)), weight(random_matrix(1, K, 2)) {
    round_to_float(weight);
  }
  Matrix forward(DType dtype) const {
    Operands operands(dtype);
    const Tensor y = operands.output(x.rows, x.cols), rstd = operands.trainable(x.rows, G);
    operands.backend().rmsnorm_forward(y, rstd, operands.input(x), operands.input(weight), kEps);
    EXPECT_FALSE(std::isnan(nmse(operands.read(rstd), Matrix(x.rows, G, 1.0))));
    return operands.read(y);
  }
  Matrix backward(DType dtype, const Matrix& dy, const Matrix* before,
                  bool in_place = false) const {
    Operands operands(dtype);
    const Tensor y = operands.output(x.rows, x.cols), rstd = operands.trainable(x.rows, G);
    const Tensor x_in = operands.input(x), w = operands.input(weight), dy_in = operands.input(dy);
    operands.backend().rmsnorm_forward(y, rstd, x_in, w, kEps);
    const Tensor dx = in_place ? dy_in
                      : before ? operands.input(*before)
                               : operands.output(x.rows, x.cols);
    operands.backend().rmsnorm_backward(dx, dy_in, x_in, rstd, w, before ? 1.0f : 0.0f);
    return operands.read(dx);
  }
  Operation operation() {
    return {{&x},
            [this](DType dtype) { return forward(dtype); },
            [this](DType dtype, const Matrix& dy) {
              return std::vector<Matrix>{backward(dtype, dy, nullptr)};
            }};
  }
};

TEST(RmsNorm, IsItsDefinition) {
  const Norm norm(4, 3, 7);
  const Matrix found = norm.forward(DType::f64);
  Matrix wanted(4, 21);
  for (int64_t n = 0; n < 4; ++n) {
    for (int64_t g = 0; g < 3; ++g) {
      double mean = 0.0;
      for (int64_t k = 0; k < 7; ++k) mean += std::pow(norm.x.real(n, 7 * g + k), 2) / 7;
      for (int64_t k = 0; k < 7; ++k) {
        wanted.at(n, 7 * g + k) =
            norm.x.real(n, 7 * g + k) / std::sqrt(mean + kEps) * norm.weight.real(0, k);
      }
    }
  }
  EXPECT_LE(largest_error(found, wanted), tolerance::kDouble);
}

TEST(RmsNorm, ComplexStep) {
  expect_complex_step(Norm(3, 1, 17).operation());
  expect_complex_step(Norm(2, 3, 5).operation());
  expect_complex_step(Norm(3, 4, 1).operation());
}

TEST(RmsNorm, Adjoint) {
  expect_adjoint(Norm(67, 5, 64).operation());
}

TEST(RmsNorm, Float) {
  expect_float(Norm(33, 1, 577).operation(), tolerance::kFloatElementwise);
}

TEST(RmsNorm, SameBits) {
  expect_same_bits(Norm(33, 3, 65).operation(), {1, 2, 2});
}

TEST(RmsNorm, BackwardAddsWhereBetaIsOne) {
  const Norm norm(5, 2, 9);
  const Matrix dy = random_like(norm.x, 3), before = random_like(norm.x, 4);
  Matrix wanted = norm.backward(DType::f64, dy, nullptr);
  EXPECT_TRUE(norm.backward(DType::f64, dy, nullptr, true) == wanted) << "dx is dy";
  for (size_t i = 0; i < wanted.values.size(); ++i) wanted.values[i] += before.values[i];
  EXPECT_LE(largest_error(norm.backward(DType::f64, dy, &before), wanted), tolerance::kDouble);
}

TEST(RmsNorm, ForwardInPlace) {
  const Norm norm(5, 2, 9);
  Operands operands(DType::f32);
  const Tensor x = operands.input(norm.x), rstd = operands.trainable(5, 2);
  operands.backend().rmsnorm_forward(x, rstd, x, operands.input(norm.weight), kEps);
  EXPECT_TRUE(operands.read(x) == norm.forward(DType::f32));
}

}  // namespace
}  // namespace utrain
