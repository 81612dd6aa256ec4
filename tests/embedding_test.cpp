// Embedding: the rows of the table, moved and not changed; their gradients, added token by token.
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

struct Lookup {
  Documents documents;
  Matrix table;

  Lookup(const std::vector<int64_t>& lengths, int64_t C, int64_t V)
      : documents(lengths, 0, V), table(random_matrix(V, C, 1)) {}
  Matrix forward(DType dtype) const {
    Operands operands(dtype);
    const Tensor x = operands.output(documents.n_rows(), table.cols);
    operands.backend().embedding_forward(x, operands.input(table), operands.batch(documents));
    return operands.read(x);
  }
  Matrix backward(DType dtype, const Matrix& dx, double before = 0.0) const {
    Operands operands(dtype);
    const Tensor dtable = operands.input(Matrix(table.rows, table.cols, before),
                                         operands.backend().trainable_dtype());
    operands.backend().embedding_backward(dtable, operands.input(dx), operands.batch(documents));
    return operands.read(dtable);
  }
  Operation operation() {
    return {
        {&table},
        [this](DType dtype) { return forward(dtype); },
        [this](DType dtype, const Matrix& dx) { return std::vector<Matrix>{backward(dtype, dx)}; }};
  }
};

TEST(Embedding, ComplexStep) {
  expect_complex_step(Lookup({5, 1, 7}, 3, 6).operation());
}

TEST(Embedding, Adjoint) {
  expect_adjoint(Lookup({60, 1, 33}, 131, 29).operation());
}

TEST(Embedding, Float) {
  expect_float(Lookup({60, 1, 33}, 131, 29).operation(), tolerance::kFloatElementwise);
}

TEST(Embedding, SameBits) {
  expect_same_bits(Lookup({60, 1, 33}, 131, 29).operation(), {1, 2, 2});
}

TEST(Embedding, GradientIsAddedWhereTheTokenStands) {
  Lookup lookup({3}, 2, 4);
  lookup.documents.tokens = {2, 0, 2};
  Matrix dx(3, 2), wanted(4, 2, 100.0);
  for (int64_t n = 0; n < 3; ++n) {
    for (int64_t c = 0; c < 2; ++c) dx.at(n, c) = std::pow(10.0, static_cast<double>(n)) + c;
  }
  wanted.at(0, 0) = 110.0;
  wanted.at(0, 1) = 111.0;
  wanted.at(2, 0) = 201.0;
  wanted.at(2, 1) = 203.0;
  EXPECT_TRUE(lookup.backward(DType::f32, dx, 100.0) == wanted);
}

TEST(Embedding, RefusesWhatIsOutsideTheTable) {
  Documents documents({4}, 0, 11);
  for (const int32_t token : {-1, 11}) {
    documents.tokens[2] = token;
    Operands operands(DType::f32);
    const Tensor x = operands.output(4, 9), table = operands.input(Matrix(11, 9));
    EXPECT_THROW(operands.backend().embedding_forward(x, table, operands.batch(documents)), Error);
    EXPECT_THROW(operands.backend().embedding_backward(table, x, operands.batch(documents)), Error);
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
