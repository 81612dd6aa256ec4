// A golden case (tests/golden, from transformers + PEFT in float32) run by the whole program and
// compared: logits, loss and every LoRA gradient through --dump, ten steps and the final adapter
// through a training run. golden_test.cpp does so on the CPU, cuda_run_test.cpp on a GPU.
#pragma once

#include <cmath>
#include <map>

#include "io/safetensors.h"
#include "launch.h"
#include "tolerance.h"

namespace utrain {

struct GoldenVariant {
  std::string name;  // of the golden case
  int ranks = 1, micro_batch_size = 1;
  bool packing = false;
  std::string recompute = "none";
  std::string collectives = "auto";
  std::string strategy = "ddp";

  std::vector<std::string> overrides() const {
    return {fmt::format("--train.micro_batch_size={}", micro_batch_size),
            fmt::format("--data.packing={}", packing), "--train.recompute=" + recompute,
            "--parallel.collectives=" + collectives, "--parallel.strategy=" + strategy};
  }
  std::string text() const {
    return fmt::format("{}_{}_ranks_micro_{}_{}_{}{}{}", name, ranks, micro_batch_size,
                       packing ? "packed" : "rows", recompute,
                       collectives == "auto" ? "" : "_" + collectives,
                       strategy == "ddp" ? "" : "_" + strategy);
  }
};
inline void PrintTo(const GoldenVariant& v, std::ostream* out) {
  *out << v.text();
}
inline std::string text_of(const testing::TestParamInfo<GoldenVariant>& info) {
  return info.param.text();
}

struct GoldenBounds {
  double logits, loss, gradient, curve, adapter;  // as tolerance.h explains them
};

inline std::vector<double> values_of(const SafetensorsFile& file, const std::string& name) {
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
inline double relative_error(const std::vector<double>& found, const std::vector<double>& wanted) {
  if (found.size() != wanted.size()) return HUGE_VAL;
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(found[i] - wanted[i], 2);
    norm += std::pow(wanted[i], 2);
  }
  return std::sqrt(difference / (norm > 0.0 ? norm : 1.0));
}

// The largest error of each kind, printed after the last test of a suite.
class WorstErrors {
 public:
  void expect_within(const std::string& what, double error, double bound,
                     const std::string& where) {
    EXPECT_LE(error, bound) << what << " of " << where;
    worst_[what] = std::max(worst_[what], error);
  }
  // Element by element; a wanted 0 is met exactly.
  void expect_curve(const std::string& what, const std::vector<double>& found,
                    const std::vector<double>& wanted, double bound) {
    ASSERT_EQ(found.size(), wanted.size()) << what;
    ASSERT_FALSE(wanted.empty()) << what;
    for (size_t i = 0; i < wanted.size(); ++i)
      expect_within(what, relative_error({found[i]}, {wanted[i]}), bound,
                    fmt::format("step {}", i + 1));
  }
  void expect_tensors(const SafetensorsFile& found, const SafetensorsFile& wanted, double bound) {
    EXPECT_EQ(found.tensors().size(), wanted.tensors().size());
    for (const auto& [tensor, stored] : wanted.tensors()) {
      ASSERT_NE(found.find(tensor), nullptr) << tensor;
      EXPECT_EQ(found.find(tensor)->shape, stored.shape) << tensor;
      expect_within("final tensors",
                    relative_error(values_of(found, tensor), values_of(wanted, tensor)), bound,
                    tensor);
    }
  }
  void print_and_forget() {
    for (const auto& [what, error] : worst_)
      fmt::print("largest error of {}: {:.2g}\n", what, error);
    worst_.clear();
  }

 private:
  std::map<std::string, double> worst_;
};

class GoldenCase : public testing::TestWithParam<GoldenVariant> {
 protected:
  static void TearDownTestSuite() { worst_.print_and_forget(); }

  void SetUp() override { write_bytes(dir_ / "input.toml", golden_input(name(), dir_ / "run")); }

  const std::string& name() const { return GetParam().name; }

  void run(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = GetParam().overrides();
    arguments.insert(arguments.begin(), dir_ / "input.toml");
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = launch(GetParam().ranks, arguments);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
  }

  void expect_training(const GoldenBounds& bounds, const std::vector<std::string>& more = {}) {
    ASSERT_NO_FATAL_FAILURE(run(more));
    const SafetensorsFile golden(golden_path(name()) + "/golden.safetensors");
    const std::vector<Json> lines = read_metrics(dir_ / "run/metrics.jsonl");
    const auto expect_curve = [&](const std::string& key, double bound) {
      worst_.expect_curve("curve." + key, curve(lines, key), values_of(golden, "curve." + key),
                          bound);
    };
    expect_curve("loss", bounds.curve);
    expect_curve("grad_norm", bounds.curve);
    expect_curve("lr", tolerance::kGoldenLearningRate);
    const bool full = name().ends_with("_full");
    const std::string found =
        full ? "run/model/model.safetensors" : "run/adapter/adapter_model.safetensors";
    const std::string wanted =
        full ? "/model_final/model.safetensors" : "/adapter_final/adapter_model.safetensors";
    worst_.expect_tensors(SafetensorsFile(dir_ / found),
                          SafetensorsFile(golden_path(name()) + wanted), bounds.adapter);
  }

  void expect_dump(const GoldenBounds& bounds, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"--dump", dir_ / "dump"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    ASSERT_NO_FATAL_FAILURE(run(arguments));
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
        worst_.expect_within("logits", largest_difference(ours, wanted), bounds.logits, tensor);
      } else {
        worst_.expect_within(gradient ? "gradient" : "loss", relative_error(ours, wanted),
                             gradient ? bounds.gradient : bounds.loss, tensor);
      }
    }
    EXPECT_EQ(found.tensors().size(), n_compared);
  }

  static double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
    double largest = 0.0;
    for (size_t i = 0; i < b.size(); ++i) {
      const double e = std::fabs(a[i] - b[i]);
      if (e > largest || std::isnan(e)) largest = e;  // a NaN stays
    }
    return largest;
  }

  TempDir dir_;
  static inline WorstErrors worst_;
};

}  // namespace utrain
