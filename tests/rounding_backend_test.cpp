// The CPU as if it computed in float16 or bfloat16: what is rounded and what is not, and a model
// whose gradient overflows as the scale of its loss grows.
#include "core/convert.h"
#include "oracle.h"
#include "tiny_model.h"

namespace utrain {
namespace {

constexpr DType kNarrow[] = {DType::f16, DType::bf16};

bool fits(DType dtype, float x) {
  uint16_t narrow;
  float back;
  from_float(dtype, &x, 1, &narrow);
  to_float(dtype, &narrow, 1, &back);
  return x == back;
}

// The share of the values that a tensor of this dtype could hold.
double share_that_fits(DType dtype, const Matrix& x) {
  double n = 0.0;
  for (const Complex& value : x.values) n += fits(dtype, static_cast<float>(value.real()));
  return n / static_cast<double>(x.values.size());
}

TEST(RoundingBackend, SaysWhatItIs) {
  const std::unique_ptr<Backend> backend = make_cpu_backend(DType::f16);
  EXPECT_EQ(backend->name(), "cpu, float16 emulated");
  EXPECT_EQ(backend->dtype(), DType::f32);
  EXPECT_EQ(make_cpu_backend(DType::bf16)->name(), "cpu, bfloat16 emulated");
}

TEST(RoundingBackend, RoundsActivationsAndNotGradientsOfWeights) {
  for (const DType dtype : kNarrow) {
    SCOPED_TRACE(name_of(dtype));
    Operands operands(dtype);
    Backend& backend = operands.backend();
    const Matrix ones(1, 24, 1.0);
    const Tensor x = operands.input(random_matrix(40, 24, 1)), y = operands.output(40, 16);
    const Tensor dW = operands.input(Matrix(16, 24)), dbias = operands.input(Matrix(1, 16));
    const Linear linear{operands.input(random_matrix(16, 24, 2)), {}, {}, 0, 0.0f, dW, dbias};
    backend.linear_forward(y, {}, x, linear, {});
    EXPECT_EQ(share_that_fits(dtype, operands.read(y)), 1.0);
    const Tensor dx = operands.output(40, 24), dy = operands.input(random_matrix(40, 16, 3));
    backend.linear_backward(dx, dy, x, {}, linear, {});
    EXPECT_EQ(share_that_fits(dtype, operands.read(dx)), 1.0);
    EXPECT_LT(share_that_fits(dtype, operands.read(dW)), 0.5);
    EXPECT_LT(share_that_fits(dtype, operands.read(dbias)), 0.5);

    const Tensor h = operands.output(40, 24), normed = operands.output(40, 24);
    const Tensor rstd = operands.trainable(40, 1), weight = operands.input(ones);
    backend.residual_rmsnorm_forward(h, normed, rstd, x, x, weight, 1e-5);
    EXPECT_EQ(share_that_fits(dtype, operands.read(h)), 1.0);
    EXPECT_EQ(share_that_fits(dtype, operands.read(normed)), 1.0);
    EXPECT_LT(share_that_fits(dtype, operands.read(rstd)), 0.5);
    const Tensor again = operands.output(40, 24), rstd_again = operands.trainable(40, 1);
    backend.rmsnorm_forward(again, rstd_again, h, weight, 1e-5);
    EXPECT_TRUE(operands.read(rstd_again) == operands.read(rstd)) << "of the rounded h";
  }
}

TEST(RoundingBackend, RoundsWhatEveryOperationMakes) {
  for (const DType dtype : kNarrow) {
    Operands operands(dtype);
    Backend& backend = operands.backend();
    const Documents documents({5, 1, 9}, 0, 17);
    const TokenBatch batch = operands.batch(documents);
    const int64_t N = batch.n_rows, D = 8;
    const auto input = [&](int64_t cols, uint64_t seed) {
      return operands.input(random_matrix(N, cols, seed));
    };
    const auto expect = [&](const char* op, const Tensor& x) {
      EXPECT_EQ(share_that_fits(dtype, operands.read(x)), 1.0) << op << ", " << name_of(dtype);
    };
    const Tensor x = operands.output(N, D), rstd = operands.input(Matrix(N, 1, 0.7));
    backend.embedding_forward(x, operands.input(random_matrix(17, D, 1)), batch);
    expect("embedding_forward", x);
    const Tensor weight = operands.input(random_matrix(1, D, 2)), dx = operands.output(N, D);
    backend.rmsnorm_backward(dx, {}, input(D, 3), x, rstd, weight, 0.0f, {});
    expect("rmsnorm_backward", dx);
    const Tensor table = operands.input(random_matrix(9, D, 4)), turned = input(D, 5);
    backend.rope_forward(turned, table, D, batch);
    expect("rope_forward", turned);
    const Tensor dturned = input(D, 6);
    backend.rope_backward(dturned, table, D, batch);
    expect("rope_backward", dturned);
    const Tensor qkv = input(3 * D, 7), out = operands.output(N, D), lse = operands.output(N, 1);
    const AttentionShape shape{1, 1, D, 0.3, 0};
    backend.attention_forward(out, lse, qkv.columns(0, D), qkv.columns(D, D), qkv.columns(2 * D, D),
                              batch, shape);
    expect("attention_forward", out);
    const Tensor dqkv = operands.output(N, 3 * D), delta = operands.output(N, 1);
    backend.attention_backward(dqkv, delta, input(D, 8), out, lse, qkv, batch, shape);
    expect("attention_backward", dqkv);
    const Tensor act = operands.output(N, D), gate_up = input(2 * D, 9);
    backend.swiglu_forward(act, gate_up);
    expect("swiglu_forward", act);
    const Tensor dgate_up = operands.output(N, 2 * D);
    backend.swiglu_backward(dgate_up, input(D, 10), gate_up);
    expect("swiglu_backward", dgate_up);
    const Head head{operands.input(random_matrix(17, D, 11))};
    const Tensor loss = operands.input(Matrix(1, 1), DType::f64);
    const LossScratch scratch{operands.output(4, 17), operands.output(4, D),
                              operands.output(1, 4, DType::f64)};
    backend.cross_entropy(loss, dx, input(D, 12), head, batch, {0.3}, scratch);
    expect("cross_entropy", dx);
    backend.convert(dx, input(D, 13));
    expect("convert", dx);
  }
}

TEST(RoundingBackend, OverflowsAsItsTypeDoes) {
  for (const DType dtype : kNarrow) {
    Operands operands(dtype);
    const Tensor x = operands.input(Matrix(1, 3, 40000.0)), h = operands.output(1, 3);
    operands.backend().residual_forward(h, x, x);
    EXPECT_EQ(std::isinf(operands.read(h).real(0, 0)), dtype == DType::f16) << name_of(dtype);
  }
}

TinyModelOptions tiny() {
  return {tiny_architecture(), all_projections(3), 0.0, Recompute::keep};
}

struct Gradient {
  double loss = 0.0;
  std::vector<float> values;
  bool is_finite() const {
    return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
  }
};

Gradient gradient_of(std::unique_ptr<Backend> backend, double dloss) {
  TinyModel<float> model(tiny(), std::move(backend));
  const double loss = model.loss_and_gradients(dloss);
  return {loss, model.gradients()};
}

// The sum of the losses, not their mean: the gradient of the residual stream is about 1.
TEST(RoundingBackend, ATinyModelOverflowsAtALargeScale) {
  const Gradient small = gradient_of(make_cpu_backend(DType::f16), 0x1p10);
  const Gradient large = gradient_of(make_cpu_backend(DType::f16), 0x1p16);
  EXPECT_TRUE(small.is_finite());
  EXPECT_FALSE(large.is_finite());
  EXPECT_EQ(large.loss, small.loss);
  EXPECT_TRUE(std::isfinite(small.loss));
  EXPECT_TRUE(gradient_of(make_cpu_backend(DType::bf16), 0x1p16).is_finite());
  EXPECT_TRUE(gradient_of(make_cpu_backend(DType::f32), 0x1p16).is_finite());
}

// What the scale is for: without it a small dloss vanishes in float16.
TEST(RoundingBackend, ScaleKeepsSmallGradients) {
  constexpr double dloss = 0x1p-20, scale = 0x1p30;
  const Gradient wanted = gradient_of(make_cpu_backend(DType::f32), 1.0);
  const auto error = [&](double factor) {
    const Gradient found = gradient_of(make_cpu_backend(DType::f16), factor);
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < wanted.values.size(); ++i) {
      difference += std::pow(found.values[i] / factor - wanted.values[i], 2);
      size += std::pow(wanted.values[i], 2);
    }
    return difference / size;
  };
  EXPECT_LE(error(dloss * scale), tolerance::kF16Model);
  EXPECT_GT(error(dloss), 100.0 * tolerance::kF16Model);
}

}  // namespace
}  // namespace utrain
