// SwiGLU, and the vectorised exp under it.
#include "cpu/exp.h"
#include "oracle.h"

namespace utrain {
namespace {

struct SwiGlu {
  Matrix gate_up;

  SwiGlu(int64_t N, int64_t F) : gate_up(random_matrix(N, 2 * F, 1, 6.0)) {}
  Matrix forward(DType dtype) const {
    Operands operands(dtype);
    const Tensor act = operands.output(gate_up.rows, gate_up.cols / 2);
    operands.backend().swiglu_forward(act, operands.input(gate_up));
    return operands.read(act);
  }
  Matrix backward(DType dtype, const Matrix& dact, bool in_place) const {
    Operands operands(dtype);
    const Tensor input = operands.input(gate_up);
    const Tensor dgate_up = in_place ? input : operands.output(gate_up.rows, gate_up.cols);
    operands.backend().swiglu_backward(dgate_up, operands.input(dact), input);
    return operands.read(dgate_up);
  }
  Operation operation() {
    return {{&gate_up},
            [this](DType dtype) { return forward(dtype); },
            [this](DType dtype, const Matrix& dact) {
              return std::vector<Matrix>{backward(dtype, dact, false)};
            }};
  }
};

TEST(SwiGlu, IsItsDefinition) {
  const SwiGlu swiglu(3, 7);
  Matrix wanted(3, 7);
  for (int64_t n = 0; n < 3; ++n) {
    for (int64_t f = 0; f < 7; ++f) {
      const double gate = swiglu.gate_up.real(n, f), up = swiglu.gate_up.real(n, 7 + f);
      wanted.at(n, f) = gate / (1.0 + std::exp(-gate)) * up;
    }
  }
  EXPECT_LE(largest_error(swiglu.forward(DType::f64), wanted), tolerance::kDouble);
}

TEST(SwiGlu, ComplexStep) {
  expect_complex_step(SwiGlu(3, 11).operation());
}
TEST(SwiGlu, Adjoint) {
  expect_adjoint(SwiGlu(37, 129).operation());
}
TEST(SwiGlu, Float) {
  expect_float(SwiGlu(37, 129).operation(), tolerance::kFloatElementwise);
}
TEST(SwiGlu, SameBits) {
  expect_same_bits(SwiGlu(37, 129).operation(), {1, 2, 2});
}

TEST(SwiGlu, BackwardInPlace) {
  const SwiGlu swiglu(5, 19);
  const Matrix dact = random_matrix(5, 19, 2);
  for (const DType dtype : {DType::f32, DType::f64}) {
    EXPECT_TRUE(swiglu.backward(dtype, dact, true) == swiglu.backward(dtype, dact, false));
  }
}

TEST(SwiGlu, StaysFiniteForLargeGates) {
  SwiGlu swiglu(1, 2);
  swiglu.gate_up.values = {-200.0, 200.0, 3.0, 3.0};
  const Matrix act = swiglu.forward(DType::f32);
  EXPECT_EQ(std::abs(act.real(0, 0)), 0.0);
  EXPECT_EQ(act.real(0, 1), 600.0);
  const Matrix gradient = swiglu.backward(DType::f32, Matrix(1, 2, 1.0), false);
  EXPECT_EQ(std::abs(gradient.real(0, 0)), 0.0);
  EXPECT_EQ(gradient.real(0, 1), 3.0);
}

// Into an array, so that the vectorised loop is what is tested.
std::vector<float> exp_all(const std::vector<float>& x) {
  std::vector<float> y(x.size());
#pragma omp simd
  for (size_t i = 0; i < x.size(); ++i) y[i] = cpu::exp_of(x[i]);
  return y;
}

TEST(FloatExp, IsAccurateOverItsRange) {
  std::vector<float> x;
  for (double value = -87.33; value < 88.72; value += 1.7e-4) {
    x.push_back(static_cast<float>(value));
  }
  const std::vector<float> y = exp_all(x);
  double largest = 0.0, at = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double wanted = std::exp(static_cast<double>(x[i]));
    const double error = std::abs(y[i] - wanted) / wanted;
    if (error > largest) largest = error, at = x[i];
  }
  EXPECT_LE(largest, tolerance::kFloatExp) << "at " << at;
}

TEST(FloatExp, Limits) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> y = exp_all({0.0f, -0.0f, -104.0f, -200.0f, -infinity, -1e30f, 88.73f,
                                        200.0f, infinity, 1e30f, NAN, -100.0f});
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[1], 1.0f);
  for (int i = 2; i < 6; ++i) EXPECT_EQ(y[i], 0.0f) << i;
  for (int i = 6; i < 10; ++i) EXPECT_EQ(y[i], infinity) << i;
  EXPECT_TRUE(std::isnan(y[10]));
  // Denormal: as near as its spacing of 2^-149 allows.
  EXPECT_NEAR(y[11], std::exp(-100.0), 0x1p-149);
}

}  // namespace
}  // namespace utrain
