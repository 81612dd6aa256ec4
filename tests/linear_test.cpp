// The product with its adapters: q|k|v, gate|up and single projections, with bias and dropout; W
// and bias frozen or trained.
#include "core/random.h"
#include "oracle.h"

namespace utrain {
namespace {

struct Projection {
  int64_t out;
  bool adapted = true;
};

struct Group {
  Documents documents;
  int64_t r;
  float p;
  float scaling = 1.5f;
  uint64_t seed = 7;
  int64_t epoch = 2;
  bool trains_W = false;
  Matrix W, bias, x;
  std::vector<Matrix> A, B;
  std::vector<int64_t> row_begin;

  Group(int64_t N, int64_t in, const std::vector<Projection>& projections, int64_t r, float p = 0)
      : documents({N - N / 3, N / 3}, 0, 10, 5), r(r), p(p), x(random_matrix(N, in, 1)) {
    int64_t out = 0;
    for (const Projection& projection : projections) {
      if (projection.adapted) {
        const uint64_t seed_i = 10 + A.size();
        A.push_back(random_matrix(r, in, seed_i));
        B.push_back(random_matrix(projection.out, r, 2 * seed_i));
        row_begin.push_back(out);
      }
      out += projection.out;
    }
    W = random_matrix(out, in, 2);
    bias = random_matrix(1, out, 3);
    round_to_float(W);
    round_to_float(bias);
  }

  struct Result {
    Matrix y, xa, dx;
    std::vector<Matrix> dA, dB;
    Matrix dW, dbias;
  };
  // before: what the gradients of weights hold at the start.
  Result run(DType dtype, const Matrix* dy, bool with_dx = true, double before = 0.0) const {
    const int64_t N = x.rows, in = x.cols, n_adapters = static_cast<int64_t>(A.size());
    Operands operands(dtype);
    std::vector<LoraAdapter> adapters(A.size());
    for (size_t i = 0; i < A.size(); ++i) {
      const DType trainable = operands.backend().trainable_dtype();
      adapters[i] = {row_begin[i],
                     static_cast<uint32_t>(3 + i),
                     operands.input(A[i]),
                     operands.input(B[i]),
                     operands.input(Matrix(A[i].rows, A[i].cols, before), trainable),
                     operands.input(Matrix(B[i].rows, B[i].cols, before), trainable)};
    }
    Linear linear{operands.input(W), {}, adapters, r, scaling};
    if (bias.rows > 0) linear.bias = operands.input(bias);
    if (trains_W) {
      const DType trainable = operands.backend().trainable_dtype();
      linear.dW = operands.input(Matrix(W.rows, W.cols, before), trainable);
      if (bias.rows > 0) linear.dbias = operands.input(Matrix(1, W.rows, before), trainable);
    }
    LinearContext context{operands.batch(documents), {p, seed, epoch}, {}, {}};
    if (p > 0) context.dropped = operands.output(N + 1, in + 2);
    if (n_adapters > 0) context.dxa = operands.output(N + 1, n_adapters * r + 1);
    const Tensor y = operands.output(N, W.rows), x_in = operands.input(x);
    const Tensor xa = n_adapters > 0 ? operands.output(N, n_adapters * r) : Tensor{};
    operands.backend().linear_forward(y, xa, x_in, linear, context);
    Result result{
        operands.read(y), n_adapters > 0 ? operands.read(xa) : Matrix(), {}, {}, {}, {}, {}};
    if (dy == nullptr) return result;
    const Tensor dx = with_dx ? operands.output(N, in) : Tensor{};
    operands.backend().linear_backward(dx, operands.input(*dy), x_in, xa, linear, context);
    if (with_dx) result.dx = operands.read(dx);
    for (const LoraAdapter& adapter : adapters) {
      result.dA.push_back(operands.read(adapter.dA));
      result.dB.push_back(operands.read(adapter.dB));
    }
    if (trains_W) result.dW = operands.read(linear.dW);
    if (trains_W && bias.rows > 0) result.dbias = operands.read(linear.dbias);
    return result;
  }
  Operation operation() {
    Operation operation;
    operation.inputs.push_back(&x);
    for (size_t i = 0; i < A.size(); ++i) {
      operation.inputs.push_back(&A[i]);
      operation.inputs.push_back(&B[i]);
    }
    if (trains_W) operation.inputs.push_back(&W);
    if (trains_W && bias.rows > 0) operation.inputs.push_back(&bias);
    operation.forward = [this](DType dtype) { return run(dtype, nullptr).y; };
    operation.backward = [this](DType dtype, const Matrix& dy) {
      const Result result = run(dtype, &dy);
      std::vector<Matrix> gradients{result.dx};
      for (size_t i = 0; i < result.dA.size(); ++i) {
        gradients.push_back(result.dA[i]);
        gradients.push_back(result.dB[i]);
      }
      if (trains_W) gradients.push_back(result.dW);
      if (trains_W && bias.rows > 0) gradients.push_back(result.dbias);
      return gradients;
    };
    return operation;
  }
};

Group trained(Group group) {
  group.trains_W = true;
  return group;
}

Matrix product(const Matrix& a, const Matrix& b_transposed) {
  Matrix c(a.rows, b_transposed.rows);
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.cols; ++j) {
      for (int64_t k = 0; k < a.cols; ++k) c.at(i, j) += a.real(i, k) * b_transposed.real(j, k);
    }
  }
  return c;
}

TEST(Linear, IsItsDefinition) {
  Group group(5, 7, {{3}, {4, false}, {2}}, 2);
  Matrix wanted = product(group.x, group.W);
  for (int64_t n = 0; n < 5; ++n) {
    for (int64_t j = 0; j < 9; ++j) wanted.at(n, j) += group.bias.real(0, j);
  }
  for (size_t i = 0; i < 2; ++i) {
    const Matrix xa = product(group.x, group.A[i]), added = product(xa, group.B[i]);
    EXPECT_LE(largest_error(columns(group.run(DType::f64, nullptr).xa, 2 * i, 2), xa),
              tolerance::kDouble);
    for (int64_t n = 0; n < 5; ++n) {
      for (int64_t j = 0; j < added.cols; ++j) {
        wanted.at(n, group.row_begin[i] + j) += 1.5 * added.real(n, j);
      }
    }
  }
  EXPECT_LE(largest_error(group.run(DType::f64, nullptr).y, wanted), tolerance::kDouble);
}

TEST(Linear, MergedIsUnmerged) {
  const Group group(6, 9, {{5}, {4}}, 5);
  Group merged = group;
  merged.A.clear();
  merged.B.clear();
  for (size_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < group.B[i].rows; ++j) {
      for (int64_t c = 0; c < 9; ++c) {
        for (int64_t k = 0; k < 5; ++k) {
          merged.W.at(group.row_begin[i] + j, c) +=
              1.5 * group.B[i].real(j, k) * group.A[i].real(k, c);
        }
      }
    }
  }
  EXPECT_LE(largest_error(group.run(DType::f64, nullptr).y, merged.run(DType::f64, nullptr).y),
            tolerance::kDouble);
}

TEST(Linear, ComplexStep) {
  for (const float p : {0.0f, 0.4f}) {
    expect_complex_step(Group(5, 7, {{4}, {3}, {2}}, 1, p).operation());
    expect_complex_step(Group(4, 6, {{5}}, 5, p).operation());
    expect_complex_step(Group(4, 9, {{3, false}, {4}}, 2, p).operation());
    expect_complex_step(Group(4, 6, {{5, false}}, 5, p).operation());
    Group without_bias(4, 6, {{3}, {5}}, 2, p);
    without_bias.bias = Matrix();
    expect_complex_step(without_bias.operation());
    expect_complex_step(trained(without_bias).operation());
    expect_complex_step(trained(Group(4, 9, {{3, false}, {4}}, 2, p)).operation());
    expect_complex_step(trained(Group(4, 6, {{5, false}}, 5)).operation());
  }
}

TEST(Linear, Adjoint) {
  for (const float p : {0.0f, 0.25f}) {
    expect_adjoint(Group(67, 129, {{64}, {33}, {31}}, 5, p).operation());
    expect_adjoint(trained(Group(67, 129, {{64}, {33}, {31}}, 5, p)).operation());
  }
}

TEST(Linear, Float) {
  for (const float p : {0.0f, 0.25f}) {
    expect_float(Group(67, 257, {{64}, {33}, {31}}, 5, p).operation(), tolerance::kFloatMatmul);
    expect_float(trained(Group(67, 257, {{64}, {33}, {31}}, 5, p)).operation(),
                 tolerance::kFloatMatmul);
  }
}

TEST(Linear, SameBits) {
  expect_same_bits(Group(67, 257, {{64}, {33}, {31}}, 5, 0.25f).operation(), {1, 1});
  expect_same_bits(Group(67, 257, {{64}, {33}, {31}}, 5, 0.25f).operation(), {2, 2});
  expect_same_bits(trained(Group(67, 257, {{64, false}, {131, false}}, 5)).operation(), {2, 2});
}

Matrix plus(Matrix x, double value) {
  for (Complex& element : x.values) element += value;
  return x;
}

TEST(Linear, GradientsOfWeightsAreAdded) {
  const Group group = trained(Group(5, 7, {{4}, {3}}, 2));
  const Matrix dy = random_matrix(5, 7, 8);
  const Group::Result first = group.run(DType::f64, &dy);
  const Group::Result second = group.run(DType::f64, &dy, false, 10.0);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_LE(largest_error(second.dA[i], plus(first.dA[i], 10.0)), tolerance::kDouble);
    EXPECT_LE(largest_error(second.dB[i], plus(first.dB[i], 10.0)), tolerance::kDouble);
  }
  EXPECT_LE(largest_error(second.dW, plus(first.dW, 10.0)), tolerance::kDouble);
  EXPECT_LE(largest_error(second.dbias, plus(first.dbias, 10.0)), tolerance::kDouble);
}

TEST(Linear, AnEmptyPassAddsNothing) {
  Group group = trained(Group(3, 7, {{4}}, 2));
  group.documents = Documents({}, 0, 10);
  group.x = Matrix(0, 7);
  const Matrix dy(0, 4);
  const Group::Result result = group.run(DType::f32, &dy, true, 3.0);
  EXPECT_TRUE(result.dA[0] == Matrix(2, 7, 3.0));
  EXPECT_TRUE(result.dB[0] == Matrix(4, 2, 3.0));
  EXPECT_TRUE(result.dW == Matrix(4, 7, 3.0));
  EXPECT_TRUE(result.dbias == Matrix(1, 4, 3.0));
}

// With x = 1 and A = I, xa shows the mask times 1 / (1 - p).
Group mask_shower(std::vector<int64_t> lengths, int64_t in, float p) {
  int64_t N = 0;
  for (const int64_t length : lengths) N += length;
  Group group(N, in, {{2}, {2}}, in, p);
  group.documents = Documents(lengths, 0, 10, 5);
  group.x = Matrix(N, in, 1.0);
  for (Matrix& A : group.A) {
    A = Matrix(in, in);
    for (int64_t i = 0; i < in; ++i) A.at(i, i) = 1.0;
  }
  return group;
}

TEST(Dropout, MaskIsTheDocumentedFunction) {
  const Group group = mask_shower({3, 4}, 70, 0.25f);
  const Matrix xa = group.run(DType::f64, nullptr).xa;
  const uint64_t key = dropout_key(group.seed, group.epoch);
  for (uint32_t adapter = 0; adapter < 2; ++adapter) {
    for (int64_t n = 0; n < 7; ++n) {
      const uint32_t position = static_cast<uint32_t>(n < 3 ? n : n - 3), document = n < 3 ? 5 : 6;
      for (uint32_t c = 0; c < 70; ++c) {
        const uint32_t word = philox(key, c / 4, position, document, 3 + adapter).x[c % 4];
        const double wanted = word >= dropout_threshold(0.25f) ? 1.0f / 0.75f : 0.0;
        EXPECT_EQ(xa.real(n, adapter * 70 + c), wanted);
      }
    }
  }
}

TEST(Dropout, KeepsTheShareAsked) {
  const Matrix xa = mask_shower({500}, 100, 0.25f).run(DType::f32, nullptr).xa;
  double kept = 0.0;
  for (const Complex& value : xa.values) kept += value != 0.0;
  EXPECT_NEAR(kept / static_cast<double>(xa.values.size()), 0.75, tolerance::kDropoutRate);
}

TEST(Dropout, MaskFollowsTheDocumentAndNotTheRow) {
  const Matrix both = mask_shower({3, 4}, 20, 0.5f).run(DType::f64, nullptr).xa;
  Group second = mask_shower({4}, 20, 0.5f);
  for (int32_t& document : second.documents.documents) document = 6;
  const Matrix alone = second.run(DType::f64, nullptr).xa;
  for (int64_t n = 0; n < 4; ++n) {
    for (int64_t c = 0; c < 40; ++c) EXPECT_EQ(alone.real(n, c), both.real(3 + n, c));
  }
}

TEST(Dropout, MasksDifferByAdapterSeedEpochAndDocument) {
  Group group = mask_shower({4}, 64, 0.5f);
  const Matrix xa = group.run(DType::f64, nullptr).xa;
  EXPECT_FALSE(columns(xa, 0, 64) == columns(xa, 64, 64));
  Group other = group;
  other.seed += 1;
  EXPECT_FALSE(other.run(DType::f64, nullptr).xa == xa);
  other = group;
  other.epoch += 1;
  EXPECT_FALSE(other.run(DType::f64, nullptr).xa == xa);
  other = group;
  for (int32_t& document : other.documents.documents) document += 1;
  EXPECT_FALSE(other.run(DType::f64, nullptr).xa == xa);
}

TEST(Dropout, NoneIsNearlyNone) {
  Group group(6, 9, {{5}, {4}}, 2);
  const Matrix dy = random_matrix(6, 9, 8);
  const Group::Result none = group.run(DType::f64, &dy);
  group.p = 1e-9f;  // no word is below its threshold of 4
  const Group::Result nearly = group.run(DType::f64, &dy);
  EXPECT_TRUE(none.y == nearly.y);
  EXPECT_LE(largest_error(nearly.dx, none.dx), tolerance::kDouble);
  EXPECT_TRUE(none.dA == nearly.dA);
  EXPECT_TRUE(none.dB == nearly.dB);
}

TEST(Dropout, RefusesOne) {
  Group group(6, 9, {{5}}, 2, 1.0f);
  EXPECT_THROW(group.run(DType::f32, nullptr), Error);
}

}  // namespace
}  // namespace utrain
