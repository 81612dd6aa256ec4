// The product with its adapters on the GPU, W and bias frozen or trained, against the CPU in
// double; dropout's mask against the CPU's.
#include "cuda_oracle.h"

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
  bool with_bias = true, with_dx = true, trains_W = false;
  double before = 0.0;  // what the gradients of weights hold at the start
  Matrix W, bias, x, dy;
  std::vector<Matrix> A, B;
  std::vector<int64_t> row_begin;

  // Everything rounded to dtype.
  Group(DType dtype, std::vector<int64_t> lengths, int64_t in,
        const std::vector<Projection>& projections, int64_t r, float p)
      : documents(lengths, 0, 10, 5), r(r), p(p) {
    int64_t out = 0;
    for (const Projection& projection : projections) {
      if (projection.adapted) {
        A.push_back(rounded(dtype, random_matrix(r, in, 10 + A.size())));
        B.push_back(rounded(dtype, random_matrix(projection.out, r, 20 + B.size())));
        row_begin.push_back(out);
      }
      out += projection.out;
    }
    const int64_t N = documents.n_rows();
    x = rounded(dtype, random_matrix(N, in, 1));
    W = rounded(dtype, random_matrix(out, in, 2));
    bias = rounded(dtype, random_matrix(1, out, 3));
    dy = rounded(dtype, random_matrix(N, out, 4));
  }
};

struct Result {
  Matrix y, xa, dx;
  std::vector<Matrix> dA, dB;
  Matrix dW, dbias;
  bool operator==(const Result&) const = default;
};

template <class Backing>
Result run(const Group& group, Backing&& operands) {
  const int64_t N = group.x.rows, in = group.x.cols,
                n_adapters = static_cast<int64_t>(group.A.size());
  const DType trainable = operands.backend().trainable_dtype();
  std::vector<LoraAdapter> adapters(group.A.size());
  for (size_t i = 0; i < adapters.size(); ++i) {
    const Matrix &A = group.A[i], &B = group.B[i];
    adapters[i] = {group.row_begin[i],
                   static_cast<uint32_t>(3 + i),
                   operands.input(A),
                   operands.input(B),
                   operands.input(Matrix(A.rows, A.cols, group.before), trainable),
                   operands.input(Matrix(B.rows, B.cols, group.before), trainable)};
  }
  Linear linear{operands.input(group.W), {}, adapters, group.r, 1.5f};
  if (group.with_bias) linear.bias = operands.input(group.bias);
  if (group.trains_W) {
    linear.dW = operands.input(Matrix(group.W.rows, in, group.before), trainable);
    if (group.with_bias) {
      linear.dbias = operands.input(Matrix(1, group.W.rows, group.before), trainable);
    }
  }
  LinearContext context{operands.batch(group.documents), {group.p, 7, 2}, {}, {}};
  if (group.p > 0) context.dropped = operands.output(N + 1, in + 8);
  if (n_adapters > 0) context.dxa = operands.output(N + 1, n_adapters * group.r + 1);
  if (group.trains_W) context.column_sums = operands.trainable(kColumnParts, group.W.rows + 1);
  const Tensor y = operands.output(N, group.W.rows), x = operands.input(group.x);
  const Tensor xa = n_adapters > 0 ? operands.output(N, n_adapters * group.r) : Tensor{};
  operands.backend().linear_forward(y, xa, x, linear, context);
  const Tensor dx = group.with_dx ? operands.output(N, in) : Tensor{};
  operands.backend().linear_backward(dx, operands.input(group.dy), x, xa, linear, context);

  Result result;
  result.y = operands.read(y);
  if (group.trains_W) result.dW = operands.read(linear.dW);
  if (group.trains_W && group.with_bias) result.dbias = operands.read(linear.dbias);
  if (n_adapters > 0) result.xa = operands.read(xa);
  if (group.with_dx) result.dx = operands.read(dx);
  for (const LoraAdapter& adapter : adapters) {
    result.dA.push_back(operands.read(adapter.dA));
    result.dB.push_back(operands.read(adapter.dB));
  }
  return result;
}

// float_bound: NMSE in float32. Elsewhere each of x a, y, what adapters add and the masked copies
// rounds to T.
void expect_as_on_cpu(DType dtype, const Group& group, int64_t padding, double float_bound) {
  const Result found = run(group, CudaOperands(dtype, padding)),
               wanted = run(group, Operands(DType::f64));
  const double bound = dtype == DType::f32    ? float_bound
                       : dtype == DType::bf16 ? tolerance::kBf16Chain
                                              : tolerance::kF16Chain;
  const auto expect = [&](const char* what, const Matrix& a, const Matrix& b) {
    SCOPED_TRACE(what);
    expect_close(a, b, bound);
  };
  expect("y", found.y, wanted.y);
  expect("xa", found.xa, wanted.xa);
  expect("dx", found.dx, wanted.dx);
  expect("dW", found.dW, wanted.dW);
  expect("dbias", found.dbias, wanted.dbias);
  for (size_t i = 0; i < wanted.dA.size(); ++i) {
    expect("dA", found.dA[i], wanted.dA[i]);
    expect("dB", found.dB[i], wanted.dB[i]);
  }
}

// padding 3 and these widths: nothing is aligned, every row starts elsewhere.
TEST(CudaLinear, AwkwardShapes) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t r : {1, 5, 16, 64}) {
      for (const float p : {0.0f, 0.25f}) {
        SCOPED_TRACE(fmt::format("{} r = {} p = {}", name_of(dtype), r, p));
        const Group group(dtype, {1, 63, 3}, 257, {{64}, {33, false}, {31}, {7}}, r, p);
        expect_as_on_cpu(dtype, group, 3, tolerance::kFloatMatmul);
      }
    }
  }
}

TEST(CudaLinear, AlignedShapes) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t r : {1, 5, 16, 64}) {
      for (const float p : {0.0f, 0.25f}) {
        SCOPED_TRACE(fmt::format("{} r = {} p = {}", name_of(dtype), r, p));
        const Group group(dtype, {65, 63}, 256, {{128}, {64}, {64}}, r, p);
        expect_as_on_cpu(dtype, group, 8, tolerance::kFloatMatmul);
      }
    }
  }
}

TEST(CudaLinear, OneToken) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t padding : kCudaPaddings) {
      SCOPED_TRACE(name_of(dtype));
      expect_as_on_cpu(dtype, Group(dtype, {1}, 72, {{40}, {8}}, 5, 0.25f), padding,
                       tolerance::kFloatMatmul);
    }
  }
}

// The products that give dA and dB have many terms and few results: the library may split them.
TEST(CudaLinear, ManyTokens) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    SCOPED_TRACE(name_of(dtype));
    expect_as_on_cpu(dtype, Group(dtype, {1900, 1101}, 384, {{256}, {64}}, 16, 0.0f), 8,
                     tolerance::kFloatLongSums);
  }
}

TEST(CudaLinear, WithoutBiasOrDxOrAdapters) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t padding : kCudaPaddings) {
      SCOPED_TRACE(name_of(dtype));
      Group group(dtype, {5, 4}, 40, {{24}, {16}}, 5, 0.25f);
      group.with_bias = false;
      expect_as_on_cpu(dtype, group, padding, tolerance::kFloatMatmul);
      group.with_dx = false;
      expect_as_on_cpu(dtype, group, padding, tolerance::kFloatMatmul);
      Group frozen(dtype, {5, 4}, 40, {{24, false}}, 5, 0.0f);
      expect_as_on_cpu(dtype, frozen, padding, tolerance::kFloatMatmul);
    }
  }
}

TEST(CudaLinear, TrainedWeights) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t padding : kCudaPaddings) {
      for (const std::vector<int64_t>& lengths :
           {std::vector<int64_t>{1}, {63, 64}, {65, 1, 300}, {1900, 101}}) {
        SCOPED_TRACE(
            fmt::format("{} padding {} {} documents", name_of(dtype), padding, lengths.size()));
        for (const int64_t in : {72, 257}) {
          Group group(dtype, lengths, in, {{257, false}, {31, false}, {8, false}}, 0, 0.0f);
          group.trains_W = true;
          expect_as_on_cpu(dtype, group, padding, tolerance::kFloatLongSums);
        }
      }
    }
  }
}

TEST(CudaLinear, GradientsOfWeightsAreAdded) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    SCOPED_TRACE(name_of(dtype));
    Group group(dtype, {40, 27}, 48, {{24}, {16}}, 5, 0.0f);
    group.trains_W = true;
    group.before = 2.0;
    expect_as_on_cpu(dtype, group, 3, tolerance::kFloatMatmul);
  }
}

TEST(CudaLinear, AnEmptyPassAddsNothing) {
  UTRAIN_NEEDS_GPU();
  Group group(DType::bf16, {}, 8, {{4}}, 2, 0.0f);
  group.trains_W = true;
  group.before = 3.0;
  const Result result = run(group, CudaOperands(DType::bf16));
  EXPECT_TRUE(result.dA[0] == Matrix(2, 8, 3.0));
  EXPECT_TRUE(result.dB[0] == Matrix(4, 2, 3.0));
  EXPECT_TRUE(result.dW == Matrix(4, 8, 3.0));
  EXPECT_TRUE(result.dbias == Matrix(1, 4, 3.0));
}

TEST(CudaLinear, SameBits) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    Group group(dtype, {1900, 1101}, 384, {{256}, {64}}, 16, 0.25f);
    group.trains_W = true;
    const Result first = run(group, CudaOperands(dtype, 8));
    for (int i = 0; i < 3; ++i)
      EXPECT_TRUE(run(group, CudaOperands(dtype, 8)) == first) << name_of(dtype);
  }
}

// With x = 1 and A = I, xa is the mask times 1 / (1 - p).
TEST(CudaDropout, MaskIsTheOneOfTheCpu) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t padding : kCudaPaddings) {
      for (const int64_t in : {70, 64}) {
        Group group(dtype, {3, 41}, in, {{2}, {3}}, in, 0.25f);
        group.x = Matrix(group.x.rows, in, 1.0);
        for (Matrix& A : group.A) {
          A = Matrix(in, in);
          for (int64_t i = 0; i < in; ++i) A.at(i, i) = 1.0;
        }
        const Matrix wanted = rounded(dtype, run(group, Operands(DType::f64)).xa);
        EXPECT_TRUE(run(group, CudaOperands(dtype, padding)).xa == wanted)
            << name_of(dtype) << ", " << in;
      }
    }
  }
}

TEST(CudaDropout, RefusesOne) {
  UTRAIN_NEEDS_GPU();
  const Group group(DType::f32, {6}, 8, {{4}}, 2, 1.0f);
  EXPECT_THROW(run(group, CudaOperands(DType::f32)), Error);
}

}  // namespace
}  // namespace utrain
