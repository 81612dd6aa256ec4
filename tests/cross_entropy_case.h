// One call of cross_entropy: its operands, and what it leaves on a backend.
#pragma once

#include "oracle.h"

namespace utrain {

inline constexpr double kDloss = 0.125;

struct CrossEntropyCase {
  Documents documents;
  int64_t chunk;
  Matrix x, W;

  struct Result {
    Matrix loss, dx, dW;
    bool operator==(const Result&) const = default;
  };
  // before: what loss and dW hold at the start. scale: of the loss, on the device; 0: none.
  template <class Backing>
  Result run_on(Backing&& operands, bool with_dx, double before, double scale,
                double dloss = kDloss) const {
    const Tensor loss = operands.input(Matrix(1, 1, before), operands.backend().loss_dtype());
    const Tensor dx = with_dx ? operands.output(x.rows, x.cols) : Tensor{};
    const Tensor dW =
        operands.input(Matrix(W.rows, W.cols, before), operands.backend().trainable_dtype());
    LossFactor factor{dloss};
    if (scale > 0.0) factor.scale = operands.input(Matrix(1, 1, scale), DType::f64);
    operands.backend().cross_entropy(
        loss, dx, operands.input(x), {operands.input(W), dW}, operands.batch(documents), factor,
        {operands.output(chunk, W.rows), operands.output(chunk, x.cols),
         operands.output(1, chunk, operands.backend().loss_dtype())});
    return {operands.read(loss), with_dx ? operands.read(dx) : Matrix(), operands.read(dW)};
  }
};

}  // namespace utrain
