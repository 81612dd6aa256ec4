// The whole two-layer model, all options: its gradient in double against the complex step of its
// own forward, and recomputation against none.
#include <gtest/gtest.h>

#include <algorithm>
#include <complex>

#include "model/rope_table.h"
#include "plan/recording_backend.h"
#include "tiny_model.h"
#include "tolerance.h"

namespace utrain {
namespace {

struct Case {
  const char* name;
  TinyModelOptions options;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name) -> TinyModelOptions& {
    all.push_back({name, {tiny_architecture(), all_projections(3), 0.0, Recompute::keep}});
    return all.back().options;
  };
  add("plain");
  add("llama3_rope").architecture.rope = {10000.0, Rope::Type::llama3, 8.0, 1.0, 4.0, 16};
  {
    Architecture& a = add("biases").architecture;
    a.attention_bias = a.o_bias = a.mlp_bias = true;
  }
  add("head_norms").architecture.qk_norm = true;
  add("window").architecture.window = {3, 0};
  add("tied").architecture.tied_embeddings = true;
  {
    TinyModelOptions& o = add("rslora_r1");
    o.lora = all_projections(1);
    o.lora.use_rslora = true;
  }
  add("dropout").dropout = 0.3;
  add("only_q_and_v").lora.targets = {Projection::q, Projection::v};
  add("only_o").lora.targets = {Projection::o};
  add("only_up").lora.targets = {Projection::up};
  add("only_down").lora.targets = {Projection::down};
  {
    TinyModelOptions& o = add("everything");
    o.architecture.attention_bias = o.architecture.o_bias = o.architecture.mlp_bias = true;
    o.architecture.qk_norm = true;
    o.architecture.window = {0, 4};
    o.architecture.tied_embeddings = true;
    o.dropout = 0.2;
    o.lora.use_rslora = true;
    o.recompute = Recompute::block;
  }
  return all;
}

TEST(Model, GradientIsTheComplexStepOfItsOwnForward) {
  constexpr double h = 1e-30;
  double worst = 0.0;
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    TinyModel<double> real(c.options);
    TinyModel<std::complex<double>> complex(c.options);
    const double loss = real.loss_and_gradients(0.25);
    EXPECT_NEAR(loss, complex.loss().real(), 1e-12 * loss);
    ASSERT_GT(loss, 0.0);
    for (const Trainable& t : real.layout().tensors()) {
      const int64_t begin = t.offset - real.layout().unit_begin()[static_cast<size_t>(t.unit)];
      std::complex<double>* const parameters = complex.parameters(t.unit) + begin;
      const double* const gradients = real.gradients(t.unit) + begin;
      // Every element of B and A on its own would cost a forward each; random directions inside
      // each tensor do as well.
      for (uint64_t direction = 0; direction < 3; ++direction) {
        double along = 0.0, g2 = 0.0, v2 = 0.0;
        for (int64_t i = 0; i < t.n_elem(); ++i) {
          const auto element = static_cast<uint32_t>(t.offset + i);
          const double v = uniform(philox(direction, element, 7, 7, 7).x[0]) - 0.5;
          parameters[i].imag(h * v);
          along += gradients[i] * v;
          g2 += gradients[i] * gradients[i];
          v2 += v * v;
        }
        const double wanted = 0.25 * complex.loss().imag() / h;
        const double error = std::abs(along - wanted) / std::sqrt(g2 * v2);
        worst = std::max(worst, error);
        EXPECT_LE(error, tolerance::kModelComplexStep) << t.name;
        EXPECT_GT(g2, 0.0) << t.name;
        for (int64_t i = 0; i < t.n_elem(); ++i) parameters[i].imag(0.0);
      }
    }
  }
  RecordProperty("worst_relative_error", fmt::format("{:.2e}", worst));
  fmt::print("worst relative error of the model's gradient: {:.2e}\n", worst);
}

template <class T>
std::vector<T> gradients_with(TinyModelOptions options, Recompute recompute) {
  options.recompute = recompute;
  TinyModel<T> model(options);
  model.loss_and_gradients(0.25);
  return model.gradients();
}

TEST(Model, RecomputationChangesNoBit) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const auto keep = gradients_with<float>(c.options, Recompute::keep);
    EXPECT_EQ(keep, gradients_with<float>(c.options, Recompute::mlp));
    EXPECT_EQ(keep, gradients_with<float>(c.options, Recompute::block));
    EXPECT_EQ(keep, gradients_with<float>(c.options, Recompute::keep));
  }
}

// A backend that wants passes of a multiple of 4 rows; its numbers are the CPU's.
struct Inner {
  std::unique_ptr<Backend> inner = make_cpu_backend(DType::f64);
};
class InFours : private Inner, public RecordingBackend {
 public:
  InFours() : RecordingBackend(*inner) {}
  int64_t row_multiple() const override { return 4; }
};

TEST(Model, PaddingChangesNoGradient) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    TinyModel<double> bare(c.options), padded(c.options, std::make_unique<InFours>());
    EXPECT_EQ(padded.n_rows(), 16);
    EXPECT_EQ(bare.n_rows(), 15);
    EXPECT_NEAR(padded.loss_and_gradients(0.25), bare.loss_and_gradients(0.25), 1e-12);
    const std::vector<double> found = padded.gradients(), wanted = bare.gradients();
    ASSERT_EQ(found.size(), wanted.size());
    double worst = 0.0;
    for (size_t i = 0; i < wanted.size(); ++i)
      worst = std::max(worst, std::abs(found[i] - wanted[i]));
    EXPECT_LE(worst, 1e-13);
  }
}

TEST(Model, DropoutDependsOnSeedAndEpoch) {
  TinyModelOptions options{tiny_architecture(), all_projections(3), 0.3, Recompute::keep};
  const double with = TinyModel<double>(options).loss();
  options.dropout = 0.0;
  EXPECT_NE(with, TinyModel<double>(options).loss());
}

TEST(RopeTable, LlamaThreeStretchesLongWavelengths) {
  // Llama 3.1: theta 500000, factor 8, low 1, high 4, original 8192; D = 128. From the definition:
  // frequencies above 4 / 8192 turns a token are kept, below 1 / 8192 divided by 8.
  const Rope rope{500000.0, Rope::Type::llama3, 8.0, 1.0, 4.0, 8192};
  const std::vector<float> plain = rope_frequencies({500000.0}, 128),
                           scaled = rope_frequencies(rope, 128);
  ASSERT_EQ(scaled.size(), 64u);
  int64_t kept = 0, divided = 0;
  for (size_t i = 0; i < 64; ++i) {
    const double turns = plain[i] / (2.0 * 3.14159265358979);
    if (turns > 4.0 / 8192) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i]);
      ++kept;
    } else if (turns < 1.0 / 8192) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i] / 8.0f);
      ++divided;
    } else {
      EXPECT_LT(scaled[i], plain[i]);
      EXPECT_GT(scaled[i], plain[i] / 8.0f);
    }
  }
  EXPECT_EQ(kept, 29);
  EXPECT_EQ(divided, 29);
}

}  // namespace
}  // namespace utrain
