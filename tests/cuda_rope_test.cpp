// Rotary positions on the GPU.
#include "cuda_oracle.h"
#include "rope_case.h"

namespace utrain {
namespace {

// Of values that the GPU's dtype holds.
struct Rope : RopeCase {
  Rope(DType dtype, const std::vector<int64_t>& lengths, int64_t heads, int64_t D)
      : RopeCase(lengths, heads, D) {
    x = rounded(dtype, x);
  }
  template <class Backing>
  Matrix turned(Backing&& operands, bool forward) const {
    return RopeCase::turned(operands, x, forward);
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
