// Rotary positions: the halves of every head, turned by the angle of the row's position.
#include "rope_case.h"

namespace utrain {
namespace {

struct Rope : RopeCase {
  using RopeCase::RopeCase;
  Matrix turned(DType dtype, const Matrix& values, bool forward) const {
    return RopeCase::turned(Operands(dtype), values, forward);
  }
  Operation operation() {
    return {{&x},
            [this](DType dtype) { return turned(dtype, x, true); },
            [this](DType dtype, const Matrix& dy) {
              return std::vector<Matrix>{turned(dtype, dy, false)};
            }};
  }
};

TEST(Rope, IsItsDefinition) {
  const Rope rope({4, 1, 6}, 3, 10);
  const Matrix found = rope.turned(DType::f64, rope.x, true);
  Matrix wanted(rope.x.rows, rope.x.cols);
  for (int64_t n = 0; n < wanted.rows; ++n) {
    const int64_t position = rope.documents.positions[n];
    for (int64_t head = 0; head < 3; ++head) {
      for (int64_t i = 0; i < 5; ++i) {
        const Complex before(rope.x.real(n, 10 * head + i), rope.x.real(n, 10 * head + 5 + i));
        const Complex turn(rope.cos_sin.real(position, i), rope.cos_sin.real(position, 5 + i));
        wanted.at(n, 10 * head + i) = (before * turn).real();
        wanted.at(n, 10 * head + 5 + i) = (before * turn).imag();
      }
    }
  }
  EXPECT_LE(largest_error(found, wanted), tolerance::kDouble);
}

TEST(Rope, ComplexStep) {
  expect_complex_step(Rope({3, 1, 2}, 2, 6).operation());
}
TEST(Rope, Adjoint) {
  expect_adjoint(Rope({40, 1, 33}, 3, 64).operation());
}
TEST(Rope, Float) {
  expect_float(Rope({40, 1, 33}, 3, 64).operation(), tolerance::kFloatElementwise);
}
TEST(Rope, SameBits) {
  expect_same_bits(Rope({40, 1, 33}, 3, 34).operation(), {1, 2, 2});
}

TEST(Rope, RefusesPositionsOutsideTheTable) {
  Rope rope({4}, 1, 6);
  rope.documents.positions[3] = 4;
  EXPECT_THROW(rope.turned(DType::f32, rope.x, true), Error);
}

}  // namespace
}  // namespace utrain
