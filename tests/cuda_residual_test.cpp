// The sum of the residual stream and a branch on the GPU: exact but for one rounding.
#include "cuda_oracle.h"

namespace utrain {
namespace {

Matrix add(DType dtype, int64_t padding, const Matrix& x, const Matrix& branch, bool in_place) {
  CudaOperands operands(dtype, padding);
  const Tensor input = operands.input(x);
  const Tensor h = in_place ? input : operands.output(x.rows, x.cols);
  operands.backend().residual_forward(h, input, operands.input(branch));
  return operands.read(h);
}

// The last shape has more rows than a grid has blocks for.
TEST(CudaResidual, AddsAlsoInPlace) {
  UTRAIN_NEEDS_GPU();
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1},    {6, 13},   {33, 64},
                                                {3, 4096}, {2, 8200}, {131075, 1}};
  for (const DType dtype : kCudaDTypes) {
    for (const auto& [rows, cols] : shapes) {
      const Matrix x = rounded(dtype, random_matrix(rows, cols, 1));
      const Matrix branch = rounded(dtype, random_matrix(rows, cols, 2));
      Matrix wanted = x;
      for (size_t i = 0; i < x.values.size(); ++i) wanted.values[i] += branch.values[i];
      wanted = rounded(dtype, wanted);
      for (const int64_t padding : kCudaPaddings) {
        for (const bool in_place : {false, true}) {
          EXPECT_TRUE(add(dtype, padding, x, branch, in_place) == wanted)
              << name_of(dtype) << ", " << rows << " x " << cols << ", padding " << padding;
        }
      }
    }
  }
}

}  // namespace
}  // namespace utrain
