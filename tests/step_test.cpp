// The whole program once, small and quick: two ranks, two steps with packing and dropout, an
// evaluation, a dump. What it is for is the build with AddressSanitizer and
// UndefinedBehaviorSanitizer; the numbers are checked in golden_test.cpp.
#include <algorithm>
#include <cmath>

#include "io/safetensors.h"
#include "launch.h"

namespace utrain {
namespace {

bool all_finite(const SafetensorsFile& file) {
  for (const auto& [name, tensor] : file.tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.n_elem()));
    read_elements(tensor, 0, tensor.n_elem(), values.data());
    if (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }))
      return false;
  }
  return !file.tensors().empty();
}

class Step : public testing::Test {
 protected:
  void SetUp() override { write_bytes(dir_ / "input.toml", golden_input("llama", dir_ / "run")); }

  Outcome run(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {dir_ / "input.toml",       "--lora.dropout=0.1",
                                          "--train.max_steps=2",     "--train.warmup_steps=0",
                                          "--train.recompute=block", "--train.micro_batch_size=2",
                                          "--data.shuffle=true"};
    arguments.push_back("--data.eval=" + golden_path("llama") + "/tokens.h5");
    arguments.insert(arguments.end(), more.begin(), more.end());
    return launch(2, arguments, 120.0);
  }

  TempDir dir_;
};

TEST_F(Step, TwoRanksTwoStepsAndAnEvaluation) {
  const Outcome outcome = run({});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_EQ(outcome.err, "");
  const std::vector<Json> lines = read_metrics(dir_ / "run/metrics.jsonl");
  for (const char* key : {"loss", "grad_norm"}) {
    const std::vector<double> values = curve(lines, key);
    EXPECT_EQ(values.size(), 2u);
    for (const double value : values) EXPECT_TRUE(std::isfinite(value) && value > 0.0) << key;
  }
  EXPECT_LT(curve(lines, "loss")[1], curve(lines, "loss")[0]);
  EXPECT_EQ(curve(lines, "eval_loss").size(), 1u);
  EXPECT_LT(curve(lines, "eval_loss")[0], curve(lines, "loss")[1]);
  EXPECT_TRUE(all_finite(SafetensorsFile(dir_ / "run/adapter/adapter_model.safetensors")));
}

TEST_F(Step, Dump) {
  const Outcome outcome = run({"--dump", dir_ / "dump.safetensors"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(all_finite(SafetensorsFile(dir_ / "dump.safetensors")));
}

}  // namespace
}  // namespace utrain
