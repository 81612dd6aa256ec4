// Embedding on the GPU: the rows of the table, moved and not changed; their gradients, added.
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

template <class Backing>
Matrix backward(Backing&& operands, const Documents& documents, const Matrix& dx, int64_t V) {
  const Tensor dtable =
      operands.input(Matrix(V, dx.cols, 2.0), operands.backend().trainable_dtype());
  operands.backend().embedding_backward(dtable, operands.input(dx), operands.batch(documents));
  return operands.read(dtable);
}

// Few tokens, each in more rows than a block has threads; many tokens, some in no row.
TEST(CudaEmbedding, Backward) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t V : {1, 3, 1009}) {
      for (const int64_t C : {1, 9, 64, 2056}) {
        const Documents documents({5, 1, 63, 65, C > 64 ? 1 : 900}, 3, V);
        const Matrix dx = rounded(dtype, random_matrix(documents.n_rows(), C, 1));
        const Matrix wanted = backward(Operands(DType::f64), documents, dx, V);
        for (const int64_t padding : kCudaPaddings) {
          SCOPED_TRACE(
              fmt::format("{}, V = {}, C = {}, padding {}", name_of(dtype), V, C, padding));
          const Matrix found = backward(CudaOperands(dtype, padding), documents, dx, V);
          expect_close(found, wanted, tolerance::kFloatMatmul);
          EXPECT_TRUE(backward(CudaOperands(dtype, padding), documents, dx, V) == found) << "again";
        }
      }
    }
  }
}

TEST(CudaEmbedding, WhatIsOutsideTheTableAddsNothing) {
  UTRAIN_NEEDS_GPU();
  Documents documents({4}, 0, 11);
  documents.tokens = {3, -1, 11, 3};
  for (const int64_t padding : kCudaPaddings) {
    const Matrix found =
        backward(CudaOperands(DType::bf16, padding), documents, Matrix(4, 16, 1.0), 11);
    Matrix wanted(11, 16, 2.0);
    for (int64_t c = 0; c < 16; ++c) wanted.at(3, c) = 4.0;
    EXPECT_TRUE(found == wanted);
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
  EXPECT_NO_THROW(operands.backend().embedding_backward(table, x, operands.batch(documents)));
}

}  // namespace
}  // namespace utrain
