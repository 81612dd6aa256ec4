// Embedding on the GPU: the rows of the table, moved and not changed.
#include "cuda_oracle.h"

namespace utrain {
namespace {

TEST(CudaEmbedding, MovesRowsExactly) {
  UTRAIN_NEEDS_GPU();
  const Documents documents({5, 1, 63, 65}, 3, 1009);
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t C : {1, 9, 64, 200}) {
      const Matrix table = rounded(dtype, random_matrix(1009, C, 1));
      for (const int64_t padding : kCudaPaddings) {
        CudaOperands operands(dtype, padding);
        const Tensor x = operands.output(documents.n_rows(), C);
        operands.backend().embedding_forward(x, operands.input(table), operands.batch(documents));
        Matrix wanted(documents.n_rows(), C);
        for (int64_t n = 0; n < wanted.rows; ++n) {
          for (int64_t c = 0; c < C; ++c) wanted.at(n, c) = table.real(documents.tokens[n], c);
        }
        EXPECT_TRUE(operands.read(x) == wanted)
            << name_of(dtype) << ", C = " << C << ", padding " << padding;
      }
    }
  }
}

TEST(CudaEmbedding, WhatIsOutsideTheTableShows) {
  UTRAIN_NEEDS_GPU();
  Documents documents({4}, 0, 11);
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t padding : kCudaPaddings) {
      for (const int32_t token : {-1, 11, 1 << 30}) {
        documents.tokens[2] = token;
        CudaOperands operands(dtype, padding);
        const Tensor x = operands.output(4, 16);
        operands.backend().embedding_forward(x, operands.input(Matrix(11, 16, 1.0)),
                                             operands.batch(documents));
        const Matrix found = operands.read(x);
        for (int64_t c = 0; c < 16; ++c) {
          EXPECT_EQ(found.real(1, c), 1.0);
          EXPECT_TRUE(std::isnan(found.real(2, c)));
        }
      }
    }
  }
}

TEST(CudaEmbedding, RefusesAnotherDtype) {
  UTRAIN_NEEDS_GPU();
  const Documents documents({4}, 0, 11);
  CudaOperands operands(DType::bf16);
  const Tensor x = operands.output(4, 9), table = operands.input(Matrix(11, 9), DType::f32);
  EXPECT_THROW(operands.backend().embedding_forward(x, table, operands.batch(documents)), Error);
}

TEST(CudaEmbedding, AnEmptyPassDoesNothing) {
  UTRAIN_NEEDS_GPU();
  const Documents documents({}, 0, 11);
  CudaOperands operands(DType::f32);
  const Tensor x = operands.output(0, 9), table = operands.input(Matrix(11, 9));
  EXPECT_NO_THROW(operands.backend().embedding_forward(x, table, operands.batch(documents)));
}

}  // namespace
}  // namespace utrain
