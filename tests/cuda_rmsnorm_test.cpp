// RMSNorm on the GPU: whole rows and heads, with and without a residual, both kinds of alignment.
#include "cuda_oracle.h"

namespace utrain {
namespace {

constexpr double kEps = 1e-3;  // large, so that leaving it out shows

struct Norm {
  DType dtype;
  int64_t G, K;
  Matrix x, branch, weight, dy, before;

  Norm(DType dtype, int64_t N, int64_t G, int64_t K)
      : dtype(dtype),
        G(G),
        K(K),
        x(rounded(dtype, random_matrix(N, G * K, 1))),
        branch(rounded(dtype, random_matrix(N, G * K, 2))),
        weight(rounded(dtype, random_matrix(1, K, 3))),
        dy(rounded(dtype, random_matrix(N, G * K, 4))),
        before(rounded(dtype, random_matrix(N, G * K, 5))) {}
};

struct Result {
  Matrix h, y, rstd;
  bool operator==(const Result&) const = default;
};

template <class Backing>
Result forward(const Norm& norm, const Matrix& x, Backing&& operands, bool in_place = false) {
  const Tensor input = operands.input(x), rstd = operands.trainable(x.rows, norm.G);
  const Tensor y = in_place ? input : operands.output(x.rows, x.cols);
  operands.backend().rmsnorm_forward(y, rstd, input, operands.input(norm.weight), kEps);
  return {x, operands.read(y), operands.read(rstd)};
}

Result residual_forward(const Norm& norm, CudaOperands operands, bool in_place) {
  const Tensor x = operands.input(norm.x), rstd = operands.trainable(x.rows, norm.G);
  const Tensor h = in_place ? x : operands.output(x.rows, x.cols);
  const Tensor y = operands.output(x.rows, x.cols);
  operands.backend().residual_rmsnorm_forward(h, y, rstd, x, operands.input(norm.branch),
                                              operands.input(norm.weight), kEps);
  return {operands.read(h), operands.read(y), operands.read(rstd)};
}

struct Gradients {
  Matrix dx, dweight;
  bool operator==(const Gradients&) const = default;
};

// beta = 1 where `adds`; else dx is dy where `in_place`.
template <class Backing>
Gradients backward(const Norm& norm, Backing&& operands, bool adds, bool in_place = false) {
  const Tensor x = operands.input(norm.x), weight = operands.input(norm.weight);
  const Tensor rstd = operands.trainable(x.rows, norm.G);
  operands.backend().rmsnorm_forward(operands.output(x.rows, x.cols), rstd, x, weight, kEps);
  const Tensor dy = operands.input(norm.dy);
  const Tensor dx = in_place ? dy
                    : adds   ? operands.input(norm.before)
                             : operands.output(x.rows, x.cols);
  const Tensor dweight =
      operands.input(Matrix(1, norm.K, adds ? 2.0 : 0.0), operands.backend().trainable_dtype());
  operands.backend().rmsnorm_backward(dx, dweight, dy, x, rstd, weight, adds ? 1.0f : 0.0f,
                                      operands.trainable(kColumnParts, norm.K + 1));
  return {operands.read(dx), operands.read(dweight)};
}

struct Shape {
  int64_t N, G, K;
};
// Part of a warp, heads, one block with idle threads, full blocks, the widest.
constexpr Shape kShapes[] = {{40, 1, 5},   {3, 4, 6},    {33, 5, 64},  {900, 3, 128},
                             {5, 2, 256},  {17, 1, 257}, {7, 1, 577},  {4, 2, 896},
                             {6, 1, 4096}, {2, 1, 8200}, {2, 1, 16384}};

template <class Check>
void for_all_cases(Check check) {
  for (const DType dtype : kCudaDTypes) {
    for (const Shape& shape : kShapes) {
      const Norm norm(dtype, shape.N, shape.G, shape.K);
      for (const int64_t padding : kCudaPaddings) {
        SCOPED_TRACE(fmt::format("{}, N = {}, G = {}, K = {}, padding {}", name_of(dtype), shape.N,
                                 shape.G, shape.K, padding));
        check(norm, padding);
      }
    }
  }
}

TEST(CudaRmsNorm, Forward) {
  UTRAIN_NEEDS_GPU();
  for_all_cases([](const Norm& norm, int64_t padding) {
    const Result found = forward(norm, norm.x, CudaOperands(norm.dtype, padding));
    const Result wanted = forward(norm, norm.x, Operands(DType::f64));
    expect_close(found.y, wanted.y, cuda_bound(norm.dtype, tolerance::kFloatElementwise));
    expect_close(found.rstd, wanted.rstd, tolerance::kFloatElementwise);
    EXPECT_TRUE(forward(norm, norm.x, CudaOperands(norm.dtype, padding)) == found) << "again";
    EXPECT_TRUE(forward(norm, norm.x, CudaOperands(norm.dtype, padding), true).y == found.y)
        << "in place";
  });
}

// h is rounded once, exactly; the norm is that of the rounded h, bit for bit the operation alone.
TEST(CudaRmsNorm, WithResidual) {
  UTRAIN_NEEDS_GPU();
  for_all_cases([](const Norm& norm, int64_t padding) {
    Matrix h = norm.x;
    for (size_t i = 0; i < h.values.size(); ++i) h.values[i] += norm.branch.values[i];
    const Result found = residual_forward(norm, CudaOperands(norm.dtype, padding), false);
    EXPECT_TRUE(found.h == rounded(norm.dtype, h));
    EXPECT_TRUE(found == forward(norm, found.h, CudaOperands(norm.dtype, padding)));
    EXPECT_TRUE(found == residual_forward(norm, CudaOperands(norm.dtype, padding), true))
        << "in place";
  });
}

TEST(CudaRmsNorm, Backward) {
  UTRAIN_NEEDS_GPU();
  for_all_cases([](const Norm& norm, int64_t padding) {
    const double bound = cuda_bound(norm.dtype, tolerance::kFloatElementwise);
    for (const bool adds : {false, true}) {
      const Gradients found = backward(norm, CudaOperands(norm.dtype, padding), adds);
      const Gradients wanted = backward(norm, Operands(DType::f64), adds);
      expect_close(found.dx, wanted.dx, bound);
      expect_close(found.dweight, wanted.dweight, tolerance::kFloatLongSums);
      EXPECT_TRUE(backward(norm, CudaOperands(norm.dtype, padding), adds) == found) << "again";
    }
    EXPECT_TRUE(backward(norm, CudaOperands(norm.dtype, padding), false) ==
                backward(norm, CudaOperands(norm.dtype, padding), false, true))
        << "dx is dy";
  });
}

// As Hugging Face: x * rstd is rounded before the weight; a weight that is no power of two shows
// it.
TEST(CudaRmsNorm, RoundsBeforeTheWeight) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const Norm norm(dtype, 9, 1, 128);
    const Result found = forward(norm, norm.x, CudaOperands(dtype, 8));
    Matrix wanted(9, 128);
    for (int64_t n = 0; n < 9; ++n) {
      for (int64_t k = 0; k < 128; ++k) {
        wanted.at(n, k) =
            static_cast<float>(norm.x.real(n, k)) * static_cast<float>(found.rstd.real(n, 0));
      }
    }
    wanted = rounded(dtype, wanted);
    for (int64_t n = 0; n < 9; ++n) {
      for (int64_t k = 0; k < 128; ++k) wanted.at(n, k) *= norm.weight.real(0, k);
    }
    EXPECT_TRUE(found.y == rounded(dtype, wanted)) << name_of(dtype);
  }
}

// Heads of a wider tensor, as the model calls it: the norm writes its columns and no others.
TEST(CudaRmsNorm, ColumnsOfAWiderTensor) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    const Norm norm(dtype, 5, 3, 64);
    CudaOperands operands(dtype, 8);
    const Tensor wide = operands.input(norm.before), rstd = operands.trainable(5, 3);
    const Tensor x = operands.input(norm.x), weight = operands.input(norm.weight);
    operands.backend().rmsnorm_forward(wide.columns(64, 128), rstd.columns(1, 2),
                                       x.columns(64, 128), weight, kEps);
    const Result all = forward(norm, norm.x, CudaOperands(dtype, 8));
    const Matrix found = operands.read(wide), found_rstd = operands.read(rstd);
    for (int64_t n = 0; n < 5; ++n) {
      EXPECT_TRUE(std::isnan(found_rstd.real(n, 0)));
      EXPECT_EQ(found_rstd.real(n, 2), all.rstd.real(n, 2));
      for (int64_t c = 0; c < 192; ++c) {
        EXPECT_EQ(found.real(n, c), c < 64 ? norm.before.real(n, c) : all.y.real(n, c));
      }
    }
  }
}

}  // namespace
}  // namespace utrain
