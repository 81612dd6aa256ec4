// AdamW on the GPU against the CPU in double, which is held against torch's in adamw_test.
#include "adamw_case.h"
#include "cuda_oracle.h"

namespace utrain {
namespace {

Matrix parameters(int64_t n, uint64_t seed) {
  Matrix x = random_matrix(1, n, seed);
  round_to_float(x);
  return x;
}

State start(int64_t n) {
  State state{parameters(n, 1), parameters(n, 2), parameters(n, 3)};
  for (Complex& v : state.v.values) v *= v;
  round_to_float(state.v);
  return state;
}

// eps and decay are large, so that leaving them out shows.
constexpr AdamW kOptions{.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.1};

template <class Backing>
State updated(Backing&& operands, const State& state, const Matrix& g, const Step& step) {
  return updated(operands, state, g, step, kOptions);
}

// 4099: no whole number of vectors. The last is more than one round of the grid.
TEST(CudaAdamW, IsTheCpu) {
  UTRAIN_NEEDS_GPU();
  for (const int64_t n : {1, 1024, 4099, 2049 * 1024}) {
    const State before = start(n);
    const Matrix g = parameters(n, 4);
    for (const double n_updates : {1.0, 1000.0}) {
      SCOPED_TRACE(fmt::format("n = {}, update {}", n, n_updates));
      const Step step{.grad_scale = 0.5, .n_updates = n_updates};
      const State found = updated(CudaOperands(DType::bf16), before, g, step);
      const State wanted = updated(Operands(DType::f64), before, g, step);
      EXPECT_LE(largest_error(found.p, wanted.p), tolerance::kFloatAdamW);
      EXPECT_LE(largest_error(found.m, wanted.m), tolerance::kFloatAdamW);
      EXPECT_LE(largest_error(found.v, wanted.v), tolerance::kFloatAdamW);
      EXPECT_TRUE(updated(CudaOperands(DType::bf16), before, g, step) == found) << "again";
    }
  }
}

TEST(CudaAdamW, ChangesNothingWhereTheStepIsNotFinite) {
  UTRAIN_NEEDS_GPU();
  const State before = start(2048);
  const Matrix g(1, 2048, std::nan(""));
  EXPECT_TRUE(updated(CudaOperands(DType::f32), before, g, {.grad_scale = 0.5, .is_finite = 0.0}) ==
              before);
}

}  // namespace
}  // namespace utrain
