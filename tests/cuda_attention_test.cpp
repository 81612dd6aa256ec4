// Attention on the GPU against the CPU in double.
#include <algorithm>

#include "cuda_oracle.h"

namespace utrain {
namespace {

struct Attention {
  Documents documents;
  AttentionShape shape;
  Matrix qkv, dout;

  // Scores are some spread^2 / 3 large.
  Attention(const std::vector<int64_t>& lengths, AttentionShape shape, double spread = 2.0)
      : documents(lengths, 2, 10), shape(shape) {
    this->shape.scale = 1.0 / std::sqrt(static_cast<double>(shape.D));
    qkv = random_matrix(documents.n_rows(), (shape.Hq + 2 * shape.Hkv) * shape.D, 1, spread);
    dout = random_matrix(documents.n_rows(), shape.Hq * shape.D, 2);
  }
  struct Result {
    Matrix out, lse, dqkv;
    bool operator==(const Result&) const = default;
  };
  template <class Backing>
  Result run(Backing&& operands) const {
    const int64_t N = qkv.rows, Hq = shape.Hq, Hkv = shape.Hkv, D = shape.D;
    const Tensor all = operands.input(qkv), out = operands.output(N, Hq * D);
    const Tensor lse = operands.trainable(N, Hq), delta = operands.trainable(N, Hq);
    const Tensor dqkv = operands.output(N, qkv.cols);
    const TokenBatch batch = operands.batch(documents);
    operands.backend().attention_forward(out, lse, all.columns(0, Hq * D),
                                         all.columns(Hq * D, Hkv * D),
                                         all.columns((Hq + Hkv) * D, Hkv * D), batch, shape);
    operands.backend().attention_backward(dqkv, delta, operands.input(dout), out, lse, all, batch,
                                          shape);
    return {operands.read(out), operands.read(lse), operands.read(dqkv)};
  }
  bool sees_itself_alone() const {
    return shape.window == 1 ||
           std::ranges::all_of(documents.positions, [](int32_t i) { return i == 0; });
  }
  Matrix gradient_of(const Result& result, int part) const {
    const int64_t first[] = {0, shape.Hq, shape.Hq + shape.Hkv, shape.Hq + 2 * shape.Hkv};
    return columns(result.dqkv, first[part] * shape.D, (first[part + 1] - first[part]) * shape.D);
  }
};

// By dtype, NMSE.
struct Bounds {
  double f32, bf16, f16;
  double operator()(DType dtype) const {
    return dtype == DType::f32 ? f32 : dtype == DType::bf16 ? bf16 : f16;
  }
};
constexpr Bounds kGradientBounds = {tolerance::kFloatCudaAttention,
                                    tolerance::kBf16AttentionGradient,
                                    tolerance::kF16AttentionGradient};
constexpr Bounds kLargeScoreBounds = {tolerance::kFloatLargeScores, tolerance::kBf16LargeScores,
                                      tolerance::kF16LargeScores};

struct Variant {
  int64_t padding;
  CudaOptions options;
};
const std::vector<Variant> kVariants = {{3, {}}, {8, {.hopper = true}}, {8, {.hopper = false}}};

void expect_right(Attention attention, DType dtype, const Bounds& bounds) {
  const AttentionShape& shape = attention.shape;
  attention.qkv = rounded(dtype, attention.qkv);
  attention.dout = rounded(dtype, attention.dout);
  const Attention::Result wanted = attention.run(Operands(DType::f64));
  // From exact products of the inputs, lse is float32 whatever T is.
  const double bound = bounds(dtype);
  for (const auto& [padding, options] : kVariants) {
    SCOPED_TRACE(fmt::format("{} rows, {}/{} heads, D {}, window {}, {}, padding {}, hopper = {}",
                             attention.qkv.rows, shape.Hq, shape.Hkv, shape.D, shape.window,
                             name_of(dtype), padding, options.hopper));
    const Attention::Result found = attention.run(CudaOperands(dtype, padding, options));
    expect_close(found.out, wanted.out, cuda_bound(dtype, bounds.f32));
    expect_close(found.lse, wanted.lse, bounds.f32);
    // Where every row sees itself alone, the gradients of q and k are 0, and rounding.
    if (attention.sees_itself_alone()) {
      expect_close(found.dqkv, wanted.dqkv, bound);
      continue;
    }
    for (int part = 0; part < 3; ++part) {
      SCOPED_TRACE(fmt::format("gradient of {}", "qkv"[part]));
      expect_close(attention.gradient_of(found, part), attention.gradient_of(wanted, part), bound);
    }
  }
}

void expect_right_everywhere(const Attention& attention, const Bounds& bounds = kGradientBounds) {
  for (const DType dtype : kCudaDTypes) expect_right(attention, dtype, bounds);
}

// Tiles hold 32, 64, 128 or 192 rows.
const std::vector<std::vector<int64_t>> kDocuments = {{1},
                                                      {63},
                                                      {64},
                                                      {65},
                                                      {129},
                                                      {300},
                                                      {1, 63, 1, 64, 65, 1},
                                                      {129, 1, 1, 65, 129},
                                                      {60, 300, 2, 7}};

TEST(CudaAttention, Documents) {
  UTRAIN_NEEDS_GPU();
  for (const std::vector<int64_t>& lengths : kDocuments) {
    for (const int64_t D : {64, 128})
      expect_right_everywhere(Attention(lengths, {.Hq = 4, .Hkv = 2, .D = D}));
  }
}

TEST(CudaAttention, Windows) {
  UTRAIN_NEEDS_GPU();
  for (const int64_t window : {1, 7, 64, 100}) {
    for (const int64_t D : {64, 128}) {
      const AttentionShape shape{.Hq = 2, .Hkv = 1, .D = D, .window = window};
      for (const std::vector<int64_t>& lengths : kDocuments)
        expect_right_everywhere(Attention(lengths, shape));
    }
  }
}

TEST(CudaAttention, Heads) {
  UTRAIN_NEEDS_GPU();
  const std::pair<int64_t, int64_t> heads[] = {{4, 4}, {4, 2}, {8, 1}, {9, 3}, {1, 1}};
  for (const auto& [Hq, Hkv] : heads) {
    for (const int64_t D : {64, 128}) {
      expect_right_everywhere(
          Attention({70, 1, 130}, {.Hq = Hq, .Hkv = Hkv, .D = D, .window = 100}));
    }
  }
}

TEST(CudaAttention, HeadDimensions) {
  UTRAIN_NEEDS_GPU();
  for (const int64_t D : {2, 6, 66, 80, 96, 192, 256}) {
    for (const int64_t window : {0, 7}) {
      expect_right_everywhere(
          Attention({65, 1, 40}, {.Hq = 4, .Hkv = 2, .D = D, .window = window}));
    }
  }
}

// More blocks of queries than multiprocessors: each of these takes several.
TEST(CudaAttention, ManyBlocks) {
  UTRAIN_NEEDS_GPU();
  for (const int64_t D : {64, 128}) {
    const Attention attention({50, 390, 60}, {.Hq = 64, .Hkv = 8, .D = D});
    for (const DType dtype : {DType::bf16, DType::f16})
      expect_right(attention, dtype, kGradientBounds);
  }
}

// Scores of some tens: without the running maximum exp would overflow.
TEST(CudaAttention, LargeScores) {
  UTRAIN_NEEDS_GPU();
  for (const int64_t D : {64, 128, 96}) {
    expect_right_everywhere(Attention({150, 50}, {.Hq = 2, .Hkv = 1, .D = D}, 10.0),
                            kLargeScoreBounds);
  }
}

TEST(CudaAttention, SameBits) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t D : {64, 96, 128}) {
      const Attention attention({300, 1, 129, 400}, {.Hq = 8, .Hkv = 2, .D = D});
      for (const auto& [padding, options] : kVariants) {
        const Attention::Result first = attention.run(CudaOperands(dtype, padding, options));
        for (int i = 0; i < 3; ++i)
          EXPECT_TRUE(attention.run(CudaOperands(dtype, padding, options)) == first);
      }
    }
  }
}

// Of every kernel of tensor cores.
TEST(CudaAttention, DocumentsDoNotSeeEachOther) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    for (const int64_t D : {64, 128}) {
      for (const auto& [padding, options] : kVariants) {
        Attention attention({70, 1, 133}, {.Hq = 2, .Hkv = 1, .D = D});
        const Attention::Result before = attention.run(CudaOperands(dtype, padding, options));
        for (int64_t n = 0; n < attention.qkv.rows; ++n) {
          if (n == 70) continue;
          for (int64_t c = 0; c < attention.qkv.cols; ++c) attention.qkv.at(n, c) += 3.0;
          for (int64_t c = 0; c < attention.dout.cols; ++c) attention.dout.at(n, c) += 3.0;
        }
        const Attention::Result after = attention.run(CudaOperands(dtype, padding, options));
        for (int64_t c = 0; c < before.out.cols; ++c)
          EXPECT_EQ(after.out.real(70, c), before.out.real(70, c));
        for (int64_t c = 0; c < before.dqkv.cols; ++c)
          EXPECT_EQ(after.dqkv.real(70, c), before.dqkv.real(70, c));
      }
    }
  }
}

}  // namespace
}  // namespace utrain
