// Rows of heads and the table of angles that turns them, base 100, on whatever holds the operands.
#pragma once

#include "oracle.h"

namespace utrain {

struct RopeCase {
  Documents documents;
  int64_t D;
  Matrix x, cos_sin;

  RopeCase(const std::vector<int64_t>& lengths, int64_t heads, int64_t D)
      : documents(lengths, 2, 10), D(D), x(random_matrix(documents.n_rows(), heads * D, 1)) {
    const int64_t n_positions = *std::max_element(lengths.begin(), lengths.end());
    cos_sin = Matrix(n_positions, D);
    for (int64_t position = 0; position < n_positions; ++position) {
      for (int64_t i = 0; i < D / 2; ++i) {
        const double angle = static_cast<double>(position) * std::pow(100.0, -2.0 * i / D);
        cos_sin.at(position, i) = std::cos(angle);
        cos_sin.at(position, D / 2 + i) = std::sin(angle);
      }
    }
    round_to_float(cos_sin);
  }
  template <class Backing>
  Matrix turned(Backing&& operands, const Matrix& values, bool forward) const {
    const Tensor y = operands.input(values), table = operands.input(cos_sin, DType::f32);
    const TokenBatch batch = operands.batch(documents);
    if (forward) {
      operands.backend().rope_forward(y, table, D, batch);
    } else {
      operands.backend().rope_backward(y, table, D, batch);
    }
    return operands.read(y);
  }
};

}  // namespace utrain
