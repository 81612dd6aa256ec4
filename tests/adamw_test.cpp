// AdamW against torch.optim.AdamW in float64: three steps with lr = 0.01, betas = (0.9, 0.95), eps
// = 1e-3, weight_decay = 0.1, gradients scaled by 1, 0.5, 0.25. eps and decay are large, so that
// leaving them out shows.
#include "adamw_case.h"

namespace utrain {
namespace {

Matrix row(const std::vector<double>& values) {
  Matrix x(1, static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) x.values[i] = values[i];
  return x;
}

void update(DType dtype, State& state, const Matrix& g, const Step& step, const AdamW& options) {
  state = updated(Operands(dtype), state, g, step, options);
}

const std::vector<std::vector<double>> kGradients = {
    {0.1, -0.2, 0.3, 1e-4}, {0.05, 0.4, -0.6, -2e-4}, {-1.0, 0.25, 0.0, 3e-4}};
const std::vector<std::vector<double>> kParameters = {
    {0.4895990099009901, -1.2387997512437812, 1.9880332225913622, 0.029060909090909092},
    {0.4808246796038648, -1.2380846487954964, 1.9865697566008043, 0.02907969507177034},
    {0.4837224356105398, -1.2386320499294396, 1.98499359337935, 0.028827593674185564}};
const Matrix kM = row(
    {-0.014649999999999996, 0.008049999999999996, -0.002699999999999997, 6.599999999999997e-06});
const Matrix kV =
    row({0.0036059375000000032, 0.003900312500000003, 0.008336250000000007, 1.207500000000001e-09});

State three_steps(DType dtype, double bound) {
  const AdamW options{.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.1};
  State state{row({0.5, -1.25, 2.0, 0.03}), Matrix(1, 4), Matrix(1, 4)};
  for (int64_t step = 0; step < 3; ++step) {
    const Step of_step{.grad_scale = std::pow(0.5, step), .n_updates = step + 1.0};
    update(dtype, state, row(kGradients[step]), of_step, options);
    EXPECT_LE(largest_error(state.p, row(kParameters[step])), bound) << "step " << step + 1;
  }
  return state;
}

TEST(AdamW, IsTorchInDouble) {
  const State state = three_steps(DType::f64, tolerance::kDouble);
  EXPECT_LE(largest_error(state.m, kM), tolerance::kDouble);
  EXPECT_LE(largest_error(state.v, kV), tolerance::kDouble);
}

TEST(AdamW, IsTorchInFloat) {
  const State state = three_steps(DType::f32, tolerance::kFloatAdamW);
  EXPECT_LE(largest_error(state.m, kM), tolerance::kFloatAdamW);
  EXPECT_LE(largest_error(state.v, kV), tolerance::kFloatAdamW);
}

// The whole model runs in complex<double>; its optimizer must compute what double does.
TEST(AdamW, ComplexIsDouble) {
  three_steps(DType::c128, tolerance::kDouble);
}

TEST(AdamW, ThreadsDoNotMatter) {
  const State start{random_matrix(1, 4099, 1), random_matrix(1, 4099, 2), Matrix(1, 4099, 0.25)};
  const Matrix g = random_matrix(1, 4099, 3);
  const AdamW options{.lr = 0.01, .weight_decay = 0.1};
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  State one = start, two = start;
  update(DType::f32, one, g, {.n_updates = 5.0}, options);
  omp_set_num_threads(2);
  update(DType::f32, two, g, {.n_updates = 5.0}, options);
  omp_set_num_threads(before);
  EXPECT_TRUE(one.p == two.p && one.m == two.m && one.v == two.v);
}

TEST(AdamW, ChangesNothingWhereTheStepIsNotFinite) {
  const State start{random_matrix(1, 40, 1), random_matrix(1, 40, 2), Matrix(1, 40, 0.25)};
  State state = start;
  update(DType::f64, state, random_matrix(1, 40, 3), {.is_finite = 0.0}, {.lr = 0.1});
  EXPECT_TRUE(state.p == start.p && state.m == start.m && state.v == start.v);
}

}  // namespace
}  // namespace utrain
