// Embedding: the rows of the table, moved and not changed.
#include "oracle.h"

namespace utrain {
namespace {

TEST(Embedding, MovesRowsExactly) {
  const Documents documents({5, 1, 7}, 3, 11);
  Matrix table = random_matrix(11, 9, 1);
  round_to_float(table);
  for (const DType dtype : {DType::f32, DType::f64, DType::c128}) {
    Operands operands(dtype);
    const Tensor x = operands.output(documents.n_rows(), 9);
    operands.backend().embedding_forward(x, operands.input(table), operands.batch(documents));
    const Matrix found = operands.read(x);
    for (int64_t n = 0; n < found.rows; ++n) {
      for (int64_t c = 0; c < found.cols; ++c) {
        EXPECT_EQ(found.real(n, c), table.real(documents.tokens[n], c));
      }
    }
  }
}

TEST(Embedding, RefusesWhatIsOutsideTheTable) {
  Documents documents({4}, 0, 11);
  for (const int32_t token : {-1, 11}) {
    documents.tokens[2] = token;
    Operands operands(DType::f32);
    const Tensor x = operands.output(4, 9), table = operands.input(Matrix(11, 9));
    EXPECT_THROW(operands.backend().embedding_forward(x, table, operands.batch(documents)), Error);
  }
}

TEST(Embedding, RefusesAnotherDtype) {
  const Documents documents({4}, 0, 11);
  Operands operands(DType::f32);
  const Tensor x = operands.output(4, 9), table = operands.input(Matrix(11, 9), DType::f64);
  EXPECT_THROW(operands.backend().embedding_forward(x, table, operands.batch(documents)), Error);
}

TEST(Embedding, AnEmptyPassDoesNothing) {
  const Documents documents({}, 0, 11);
  Operands operands(DType::f32);
  const Tensor x = operands.output(0, 9), table = operands.input(Matrix(11, 9));
  EXPECT_NO_THROW(operands.backend().embedding_forward(x, table, operands.batch(documents)));
}

TEST(Memory, ConvertsBetweenDtypesAndStrides) {
  Operands operands(DType::f64);
  Matrix x = random_matrix(3, 5, 2);
  round_to_float(x);
  for (const DType from : {DType::f32, DType::f64, DType::c128}) {
    for (const DType to : {DType::f32, DType::f64, DType::c128}) {
      const Tensor y = operands.output(3, 5, to);
      operands.backend().convert(y, operands.input(x, from));
      EXPECT_TRUE(operands.read(y) == x) << name_of(from) << " to " << name_of(to);
      operands.backend().zero(y);
      EXPECT_TRUE(operands.read(y) == Matrix(3, 5)) << name_of(to);
    }
  }
}

TEST(Memory, IsAligned) {
  Operands operands(DType::f32);
  for (const int64_t n_bytes : {0, 1, 255, 257}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(operands.backend().allocate(n_bytes)) % 256, 0u);
  }
}

}  // namespace
}  // namespace utrain
