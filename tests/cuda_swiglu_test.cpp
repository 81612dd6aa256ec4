// SwiGLU on the GPU.
#include "cuda_oracle.h"

namespace utrain {
namespace {

struct SwiGlu {
  Matrix gate_up, dact;

  SwiGlu(DType dtype, int64_t N, int64_t F)
      : gate_up(rounded(dtype, random_matrix(N, 2 * F, 1, 6.0))),
        dact(rounded(dtype, random_matrix(N, F, 2))) {}
  template <class Backing>
  Matrix forward(Backing&& operands) const {
    const Tensor act = operands.output(dact.rows, dact.cols);
    operands.backend().swiglu_forward(act, operands.input(gate_up));
    return operands.read(act);
  }
  template <class Backing>
  Matrix backward(Backing&& operands, bool in_place) const {
    const Tensor input = operands.input(gate_up);
    const Tensor dgate_up = in_place ? input : operands.output(gate_up.rows, gate_up.cols);
    operands.backend().swiglu_backward(dgate_up, operands.input(dact), input);
    return operands.read(dgate_up);
  }
};

// The last shape has more rows than a grid has blocks for.
TEST(CudaSwiGlu, ForwardAndBackward) {
  UTRAIN_NEEDS_GPU();
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1},    {37, 129},  {5, 16},
                                                {3, 4104}, {2, 14336}, {131075, 1}};
  for (const DType dtype : kCudaDTypes) {
    const double bound = cuda_bound(dtype, tolerance::kFloatElementwise);
    for (const auto& [N, F] : shapes) {
      const SwiGlu swiglu(dtype, N, F);
      const Matrix act = swiglu.forward(Operands(DType::f64));
      const Matrix gradient = swiglu.backward(Operands(DType::f64), false);
      for (const int64_t padding : kCudaPaddings) {
        SCOPED_TRACE(fmt::format("{}, N = {}, F = {}, padding {}", name_of(dtype), N, F, padding));
        const Matrix found = swiglu.forward(CudaOperands(dtype, padding));
        expect_close(found, act, bound);
        EXPECT_TRUE(swiglu.forward(CudaOperands(dtype, padding)) == found) << "again";
        const Matrix found_gradient = swiglu.backward(CudaOperands(dtype, padding), false);
        expect_close(found_gradient, gradient, bound);
        EXPECT_TRUE(swiglu.backward(CudaOperands(dtype, padding), true) == found_gradient)
            << "in place";
      }
    }
  }
}

TEST(CudaSwiGlu, StaysFiniteForLargeGates) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    SwiGlu swiglu(dtype, 1, 2);
    swiglu.gate_up.values = {-200.0, 200.0, 3.0, 3.0};
    swiglu.dact.values = {1.0, 1.0};
    const Matrix act = swiglu.forward(CudaOperands(dtype));
    EXPECT_EQ(std::abs(act.real(0, 0)), 0.0);
    EXPECT_EQ(act.real(0, 1), 600.0);
    const Matrix gradient = swiglu.backward(CudaOperands(dtype), false);
    EXPECT_EQ(std::abs(gradient.real(0, 0)), 0.0);
    EXPECT_EQ(gradient.real(0, 1), 3.0);
  }
}

}  // namespace
}  // namespace utrain
