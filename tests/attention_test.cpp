// Causal attention inside documents, against a dense softmax with its mask written out.
#include "oracle.h"

namespace utrain {
namespace {

struct Attention {
  Documents documents;
  AttentionShape shape;
  Matrix qkv;

  Attention(const std::vector<int64_t>& lengths, AttentionShape shape, double spread = 2.0)
      : documents(lengths, 2, 10), shape(shape) {
    this->shape.scale = 1.0 / std::sqrt(static_cast<double>(shape.D));
    qkv = random_matrix(documents.n_rows(), (shape.Hq + 2 * shape.Hkv) * shape.D, 1, spread);
  }
  struct Result {
    Matrix out, lse, dqkv;
  };
  Result run(DType dtype, const Matrix* dout) const {
    const int64_t N = qkv.rows, Hq = shape.Hq, Hkv = shape.Hkv, D = shape.D;
    Operands operands(dtype);
    const Tensor all = operands.input(qkv), out = operands.output(N, Hq * D);
    const Tensor lse = operands.trainable(N, Hq);
    const TokenBatch batch = operands.batch(documents);
    operands.backend().attention_forward(out, lse, all.columns(0, Hq * D),
                                         all.columns(Hq * D, Hkv * D),
                                         all.columns((Hq + Hkv) * D, Hkv * D), batch, shape);
    Result result{operands.read(out), operands.read(lse), {}};
    if (dout == nullptr) return result;
    const Tensor dqkv = operands.output(N, qkv.cols), delta = operands.trainable(N, Hq);
    operands.backend().attention_backward(dqkv, delta, operands.input(*dout), out, lse, all, batch,
                                          shape);
    result.dqkv = operands.read(dqkv);
    return result;
  }
  Operation operation() {
    return {{&qkv},
            [this](DType dtype) { return run(dtype, nullptr).out; },
            [this](DType dtype, const Matrix& dout) {
              return std::vector<Matrix>{run(dtype, &dout).dqkv};
            }};
  }
};

// The definition: every pair of rows, with a mask.
Attention::Result dense(const Attention& attention) {
  const AttentionShape& shape = attention.shape;
  const Documents& documents = attention.documents;
  const Matrix& qkv = attention.qkv;
  const int64_t N = qkv.rows, D = shape.D;
  Attention::Result result{Matrix(N, shape.Hq * D), Matrix(N, shape.Hq), {}};
  for (int64_t h = 0; h < shape.Hq; ++h) {
    const int64_t key_head = h / (shape.Hq / shape.Hkv);
    const int64_t k = (shape.Hq + key_head) * D, v = (shape.Hq + shape.Hkv + key_head) * D;
    for (int64_t i = 0; i < N; ++i) {
      std::vector<double> weights(N);
      double sum = 0.0;
      for (int64_t j = 0; j < N; ++j) {
        const bool visible = documents.begin[i] == documents.begin[j] && j <= i &&
                             (shape.window == 0 || i - j < shape.window);
        double score = 0.0;
        for (int64_t d = 0; d < D; ++d) score += qkv.real(i, h * D + d) * qkv.real(j, k + d);
        weights[j] = visible ? std::exp(score * shape.scale) : 0.0;
        sum += weights[j];
      }
      result.lse.at(i, h) = std::log(sum);
      for (int64_t j = 0; j < N; ++j) {
        for (int64_t d = 0; d < D; ++d) {
          result.out.at(i, h * D + d) += weights[j] / sum * qkv.real(j, v + d);
        }
      }
    }
  }
  return result;
}

// Documents on both sides of the blocks' edges (64 queries, 128 keys), windows inside, on and
// across them.
std::vector<Attention> cases() {
  return {{{5, 1, 8}, {.Hq = 2, .Hkv = 2, .D = 6}},
          {{5, 1, 8, 1, 1}, {.Hq = 6, .Hkv = 2, .D = 3}},
          {{9, 2}, {.Hq = 3, .Hkv = 1, .D = 4, .window = 3}},
          {{9, 4}, {.Hq = 1, .Hkv = 1, .D = 1, .window = 1}},
          {{63, 64, 65}, {.Hq = 2, .Hkv = 1, .D = 8}},
          {{300}, {.Hq = 2, .Hkv = 1, .D = 5}},
          {{300, 3}, {.Hq = 2, .Hkv = 2, .D = 5, .window = 100}},
          {{257, 130}, {.Hq = 1, .Hkv = 1, .D = 5, .window = 129}},
          {{261}, {.Hq = 1, .Hkv = 1, .D = 5, .window = 7}}};
}

TEST(Attention, IsTheDenseSoftmax) {
  for (const Attention& attention : cases()) {
    const Attention::Result found = attention.run(DType::f64, nullptr);
    const Attention::Result wanted = dense(attention);
    EXPECT_LE(largest_error(found.out, wanted.out), tolerance::kDouble);
    EXPECT_LE(largest_error(found.lse, wanted.lse), tolerance::kDouble);
  }
}

TEST(Attention, ComplexStep) {
  expect_complex_step(Attention({5, 1, 3}, {.Hq = 2, .Hkv = 2, .D = 4}).operation());
  expect_complex_step(Attention({5, 1, 3}, {.Hq = 6, .Hkv = 2, .D = 3}).operation());
  expect_complex_step(Attention({7, 2}, {.Hq = 2, .Hkv = 1, .D = 3, .window = 3}).operation());
}

TEST(Attention, Adjoint) {
  for (Attention& attention : cases()) expect_adjoint(attention.operation());
}

TEST(Attention, Float) {
  for (Attention& attention : cases()) {
    expect_float(attention.operation(), tolerance::kFloatAttention);
  }
}

TEST(Attention, SameBits) {
  for (Attention& attention : cases()) expect_same_bits(attention.operation(), {1, 2, 2});
}

// Scores of some hundreds: without the running maximum exp would overflow.
TEST(Attention, LargeScores) {
  Attention attention({150}, {.Hq = 1, .Hkv = 1, .D = 16}, 20.0);
  expect_float(attention.operation(), tolerance::kFloatLargeScores);
}

TEST(Attention, DocumentsDoNotSeeEachOther) {
  const Attention together({70, 1, 33}, {.Hq = 2, .Hkv = 1, .D = 8});
  const Matrix out = together.run(DType::f64, nullptr).out;
  Attention alone({33}, {.Hq = 2, .Hkv = 1, .D = 8});
  for (int64_t n = 0; n < 33; ++n) {
    for (int64_t c = 0; c < alone.qkv.cols; ++c) alone.qkv.at(n, c) = together.qkv.real(71 + n, c);
  }
  const Matrix out_alone = alone.run(DType::f64, nullptr).out;
  for (int64_t n = 0; n < 33; ++n) {
    for (int64_t c = 0; c < 16; ++c) EXPECT_EQ(out.real(71 + n, c), out_alone.real(n, c));
  }
}

TEST(Attention, RefusesDocumentsThatDoNotFollowEachOther) {
  Attention attention({4, 3}, {.Hq = 1, .Hkv = 1, .D = 2});
  attention.documents.end[0] = 5;
  EXPECT_THROW(attention.run(DType::f32, nullptr), Error);
}

}  // namespace
}  // namespace utrain
