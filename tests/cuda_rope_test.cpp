// Rotary positions on the GPU.
#include "cuda_oracle.h"

namespace utrain {
namespace {

struct Rope {
  Documents documents;
  int64_t D;
  Matrix x, cos_sin;

  Rope(DType dtype, const std::vector<int64_t>& lengths, int64_t heads, int64_t D)
      : documents(lengths, 2, 10),
        D(D),
        x(rounded(dtype, random_matrix(documents.n_rows(), heads * D, 1))) {
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
  Matrix turned(Backing&& operands, bool forward) const {
    const Tensor y = operands.input(x), table = operands.input(cos_sin, DType::f32);
    const TokenBatch batch = operands.batch(documents);
    if (forward) {
      operands.backend().rope_forward(y, table, D, batch);
    } else {
      operands.backend().rope_backward(y, table, D, batch);
    }
    return operands.read(y);
  }
};

TEST(CudaRope, ForwardAndBackward) {
  UTRAIN_NEEDS_GPU();
  const std::pair<int64_t, int64_t> shapes[] = {{1, 2},  {3, 6},   {5, 64},  {40, 128},
                                                {3, 96}, {1, 128}, {7, 256}, {9, 80}};
  for (const DType dtype : kCudaDTypes) {
    for (const auto& [heads, D] : shapes) {
      const Rope rope(dtype, {1, 63, 64, 65}, heads, D);
      for (const int64_t padding : kCudaPaddings) {
        for (const bool forward : {true, false}) {
          SCOPED_TRACE(fmt::format("{}, {} heads of {}, padding {}, {}", name_of(dtype), heads, D,
                                   padding, forward ? "forward" : "backward"));
          const Matrix found = rope.turned(CudaOperands(dtype, padding), forward);
          expect_close(found, rope.turned(Operands(DType::f64), forward),
                       cuda_bound(dtype, tolerance::kFloatElementwise));
          EXPECT_TRUE(rope.turned(CudaOperands(dtype, padding), forward) == found) << "again";
        }
      }
    }
  }
}

TEST(CudaRope, APositionOutsideTheTableShows) {
  UTRAIN_NEEDS_GPU();
  for (const int32_t position : {-1, 4, 1 << 30}) {
    Rope rope(DType::bf16, {4}, 2, 64);
    rope.documents.positions[3] = position;
    const Matrix found = rope.turned(CudaOperands(DType::bf16, 8), true);
    for (int64_t c = 0; c < 128; ++c) {
      EXPECT_FALSE(std::isnan(found.real(2, c)));
      EXPECT_TRUE(std::isnan(found.real(3, c)));
    }
  }
}

}  // namespace
}  // namespace utrain
