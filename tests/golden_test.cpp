// The whole program against transformers + PEFT in float32 (tests/golden): logits, loss and every
// LoRA gradient through --dump, ten steps and the final adapter through a training run; for any
// number of ranks, rows a pass, packing and recomputation.
#include <cmath>
#include <map>
#include <tuple>

#include "io/safetensors.h"
#include "launch.h"
#include "tolerance.h"

namespace utrain {
namespace {

struct Variant {
  std::string name;  // of the golden case
  int ranks = 1, micro_batch_size = 1;
  bool packing = false;
  std::string recompute = "none";

  std::vector<std::string> overrides() const {
    return {fmt::format("--train.micro_batch_size={}", micro_batch_size),
            fmt::format("--data.packing={}", packing), "--train.recompute=" + recompute};
  }
  std::string text() const {
    return fmt::format("{}_{}_ranks_micro_{}_{}_{}", name, ranks, micro_batch_size,
                       packing ? "packed" : "rows", recompute);
  }
};
void PrintTo(const Variant& v, std::ostream* out) {
  *out << v.text();
}

const std::vector<std::string> kRecompute = {"none", "mlp", "block"};

std::vector<Variant> whole_matrix() {
  std::vector<Variant> all;
  for (const char* name : {"llama", "qwen2"})
    for (const int ranks : {1, 2, 3, 4})
      for (const int micro : {1, 2, 4})
        for (const bool packing : {false, true})
          for (const std::string& recompute : kRecompute)
            all.push_back({name, ranks, micro, packing, recompute});
  return all;
}

// Of the matrix a part in which every two values of two options meet.
std::vector<Variant> every_pair() {
  std::vector<Variant> some;
  for (const char* name : {"llama", "qwen2"})
    for (size_t ranks = 1; ranks <= 4; ++ranks)
      for (size_t i = 0; i < 3; ++i)
        some.push_back({name, static_cast<int>(ranks), 1 << i, (ranks + i) % 2 == 0,
                        kRecompute[(ranks + i) % 3]});
  return some;
}

std::vector<Variant> own_cases() {
  std::vector<Variant> all;
  for (const char* name : {"mistral_window", "qwen3", "llama_bias_rslora", "llama_tied_down"})
    for (const int ranks : {1, 3})
      for (const bool packing : {false, true})
        all.push_back({name, ranks, ranks == 1 ? 4 : 2, packing, packing ? "block" : "none"});
  return all;
}

std::vector<double> values_of(const SafetensorsFile& file, const std::string& name) {
  const StoredTensor* tensor = file.find(name);
  if (tensor == nullptr) {
    ADD_FAILURE() << file.path() << " has no " << name;
    return {};
  }
  std::vector<double> values(static_cast<size_t>(tensor->n_elem()));
  read_elements(*tensor, 0, tensor->n_elem(), values.data());
  return values;
}

// Frobenius norm of the difference, in units of that of `wanted`.
double relative_error(const std::vector<double>& found, const std::vector<double>& wanted) {
  if (found.size() != wanted.size()) return HUGE_VAL;
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(found[i] - wanted[i], 2);
    norm += std::pow(wanted[i], 2);
  }
  return std::sqrt(difference / (norm > 0.0 ? norm : 1.0));
}

class Golden : public testing::TestWithParam<Variant> {
 protected:
  static void TearDownTestSuite() {
    for (const auto& [what, error] : worst_)
      fmt::print("largest error of {}: {:.2g}\n", what, error);
    worst_.clear();
  }

  void SetUp() override { write_bytes(dir_ / "input.toml", golden_input(name(), dir_ / "run")); }

  const std::string& name() const { return GetParam().name; }

  void run(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = GetParam().overrides();
    arguments.insert(arguments.begin(), dir_ / "input.toml");
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = launch(GetParam().ranks, arguments);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
  }

  void expect_within(const std::string& what, double error, double bound,
                     const std::string& where) {
    EXPECT_LE(error, bound) << what << " of " << where;
    worst_[what] = std::max(worst_[what], error);
  }

  // Element by element; a wanted 0 is met exactly.
  void expect_curve(const std::string& what, const std::vector<double>& found,
                    const std::vector<double>& wanted, double bound) {
    ASSERT_EQ(found.size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i)
      expect_within(what, relative_error({found[i]}, {wanted[i]}), bound,
                    fmt::format("step {}", i + 1));
  }

  TempDir dir_;
  static inline std::map<std::string, double> worst_;
};

class GoldenRun : public Golden {};

TEST_P(GoldenRun, TrainsAsTransformersAndPeft) {
  ASSERT_NO_FATAL_FAILURE(run());
  const SafetensorsFile golden(golden_path(name()) + "/golden.safetensors");
  const std::vector<Json> lines = read_metrics(dir_ / "run/metrics.jsonl");
  expect_curve("curve.loss", curve(lines, "loss"), values_of(golden, "curve.loss"),
               tolerance::kGoldenCurve);
  expect_curve("curve.grad_norm", curve(lines, "grad_norm"), values_of(golden, "curve.grad_norm"),
               tolerance::kGoldenCurve);
  expect_curve("curve.lr", curve(lines, "lr"), values_of(golden, "curve.lr"),
               tolerance::kGoldenLearningRate);

  const SafetensorsFile wanted(golden_path(name()) + "/adapter_final/adapter_model.safetensors");
  const SafetensorsFile found(dir_ / "run/adapter/adapter_model.safetensors");
  EXPECT_EQ(found.tensors().size(), wanted.tensors().size());
  for (const auto& [tensor, stored] : wanted.tensors()) {
    ASSERT_NE(found.find(tensor), nullptr) << tensor;
    EXPECT_EQ(found.find(tensor)->shape, stored.shape) << tensor;
    expect_within("final adapter",
                  relative_error(values_of(found, tensor), values_of(wanted, tensor)),
                  tolerance::kGoldenAdapter, tensor);
  }
}

class GoldenDump : public Golden {};

TEST_P(GoldenDump, HasTheirLogitsLossAndGradients) {
  ASSERT_NO_FATAL_FAILURE(run({"--dump", dir_ / "dump"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "run"));
  const SafetensorsFile golden(golden_path(name()) + "/golden.safetensors");
  const SafetensorsFile found(dir_ / "dump");
  size_t n_compared = 0;
  for (const auto& [tensor, stored] : golden.tensors()) {
    const bool logits = tensor.starts_with("logits."), gradient = tensor.starts_with("grad.");
    if (!logits && !gradient && tensor != "loss") continue;
    ++n_compared;
    ASSERT_NE(found.find(tensor), nullptr) << tensor;
    EXPECT_EQ(found.find(tensor)->shape, stored.shape) << tensor;
    EXPECT_EQ(found.find(tensor)->dtype, FileDType::f32) << tensor;
    const std::vector<double> wanted = values_of(golden, tensor), ours = values_of(found, tensor);
    ASSERT_EQ(ours.size(), wanted.size()) << tensor;
    if (logits) {
      double error = 0.0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        const double e = std::fabs(ours[i] - wanted[i]);
        if (e > error || std::isnan(e)) error = e;  // a NaN stays
      }
      expect_within("logits", error, tolerance::kGoldenLogits, tensor);
    } else {
      expect_within(gradient ? "gradient" : "loss", relative_error(ours, wanted),
                    gradient ? tolerance::kGoldenGradient : tolerance::kGoldenLoss, tensor);
    }
  }
  EXPECT_EQ(found.tensors().size(), n_compared);
}

std::string text_of(const testing::TestParamInfo<Variant>& info) {
  return info.param.text();
}

INSTANTIATE_TEST_SUITE_P(Matrix, GoldenRun, testing::ValuesIn(whole_matrix()), text_of);
INSTANTIATE_TEST_SUITE_P(OwnCases, GoldenRun, testing::ValuesIn(own_cases()), text_of);
INSTANTIATE_TEST_SUITE_P(Pairs, GoldenDump, testing::ValuesIn(every_pair()), text_of);
// A minute more: --gtest_also_run_disabled_tests.
INSTANTIATE_TEST_SUITE_P(DISABLED_Matrix, GoldenDump, testing::ValuesIn(whole_matrix()), text_of);
INSTANTIATE_TEST_SUITE_P(OwnCases, GoldenDump, testing::ValuesIn(own_cases()), text_of);

}  // namespace
}  // namespace utrain
