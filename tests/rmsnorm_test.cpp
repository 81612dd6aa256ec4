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
  struct Gradients {
    Matrix dx, dweight;
  };
  // before: what dx and dweight hold at the start, where beta = 1.
  Gradients backward(DType dtype, const Matrix& dy, const Matrix* before, bool in_place = false,
                     bool trains_weight = true) const {
    Operands operands(dtype);
    const Tensor y = operands.output(x.rows, x.cols), rstd = operands.trainable(x.rows, G);
    const Tensor x_in = operands.input(x), w = operands.input(weight), dy_in = operands.input(dy);
    operands.backend().rmsnorm_forward(y, rstd, x_in, w, kEps);
    const Tensor dx = in_place ? dy_in
                      : before ? operands.input(*before)
                               : operands.output(x.rows, x.cols);
    const Matrix dweight_before(1, weight.cols, before ? 10.0 : 0.0);
    const DType trainable = operands.backend().trainable_dtype();
    const Tensor dweight = trains_weight ? operands.input(dweight_before, trainable) : Tensor{};
    operands.backend().rmsnorm_backward(dx, dweight, dy_in, x_in, rstd, w, before ? 1.0f : 0.0f,
                                        operands.trainable(kColumnParts, weight.cols));
    return {operands.read(dx), trains_weight ? operands.read(dweight) : Matrix()};
  }
  Operation operation() {
    return {{&x, &weight},
            [this](DType dtype) { return forward(dtype); },
            [this](DType dtype, const Matrix& dy) {
              Gradients gradients = backward(dtype, dy, nullptr);
              return std::vector<Matrix>{gradients.dx, gradients.dweight};
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
  const Norm::Gradients first = norm.backward(DType::f64, dy, nullptr);
  const Norm::Gradients in_place = norm.backward(DType::f64, dy, nullptr, true);
  EXPECT_TRUE(in_place.dx == first.dx) << "dx is dy";
  EXPECT_TRUE(in_place.dweight == first.dweight) << "dx is dy";
  Matrix dx = first.dx, dweight = first.dweight;
  for (size_t i = 0; i < dx.values.size(); ++i) dx.values[i] += before.values[i];
  for (Complex& value : dweight.values) value += 10.0;
  const Norm::Gradients added = norm.backward(DType::f64, dy, &before);
  EXPECT_LE(largest_error(added.dx, dx), tolerance::kDouble);
  EXPECT_LE(largest_error(added.dweight, dweight), tolerance::kDouble);
  EXPECT_TRUE(norm.backward(DType::f64, dy, nullptr, false, false).dx == first.dx) << "frozen";
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
