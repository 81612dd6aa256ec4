// The whole program on one GPU: the golden cases in float32, the curve and the gradients in bf16
// and f16 beside them, dropout against the CPU, equal runs and strategies with equal bits, the
// quickstart, and refusals that need a GPU. Cases for more GPUs than there are skip visibly, as all
// do without any.
#include <filesystem>
#include <numeric>

#include "backend.h"
#include "comm/nccl_collectives.h"
#include "golden_case.h"
#include "launch.h"
#include "needs_gpu.h"
#include "token_files.h"

namespace utrain {
namespace {

using Words = std::vector<std::string>;

const std::string kOnGpu = "--run.backend=cuda", kShared = "--parallel.collectives=mpi";

constexpr GoldenBounds kBounds = {tolerance::kCudaGoldenLogits, tolerance::kCudaGoldenLoss,
                                  tolerance::kCudaGoldenGradient, tolerance::kCudaGoldenCurve,
                                  tolerance::kCudaGoldenAdapter};

class CudaGolden : public GoldenCase {
 protected:
  void SetUp() override {
    UTRAIN_NEEDS_GPU();
    if (GetParam().collectives == "nccl") {
      UTRAIN_NEEDS_NCCL();
      UTRAIN_NEEDS_GPUS(GetParam().ranks);
    }
    GoldenCase::SetUp();
  }
};

TEST_P(CudaGolden, TrainsAsTransformersAndPeft) {
  expect_training(kBounds, {kOnGpu});
}

TEST_P(CudaGolden, HasTheirLogitsLossAndGradients) {
  expect_dump(kBounds, {kOnGpu});
}

std::vector<GoldenVariant> golden_variants() {
  std::vector<GoldenVariant> all;
  for (const char* name : {"llama", "qwen2"}) {
    all.push_back({name});
    all.push_back({name, 1, 2});
    all.push_back({name, 1, 2, true, "mlp"});
    all.push_back({name, 1, 4, false, "block"});
    all.push_back({name, 4, 1, false, "none", "mpi"});
    all.push_back({name, 3, 2, true, "block", "mpi"});
    all.push_back({name, 1, 2, false, "offload"});
  }
  for (const char* name : {"mistral_window", "qwen3", "llama_bias_rslora", "llama_tied_down"}) {
    all.push_back({name, 1, 4, false, "none"});
    all.push_back({name, 1, 2, true, "block"});
  }
  for (const int ranks : {1, 2, 4}) all.push_back({"llama", ranks, 1, false, "none", "nccl"});
  for (const char* strategy : {"zero1", "zero2", "zero3"})
    for (const char* name : {"llama", "llama_full"})
      all.push_back({name, 4, 1, false, "none", "mpi", strategy});
  return all;
}
INSTANTIATE_TEST_SUITE_P(Float32, CudaGolden, testing::ValuesIn(golden_variants()), text_of);

double one_minus_cosine(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  const auto dot = [](const std::vector<double>& x, const std::vector<double>& y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
  };
  return 1.0 - dot(a, b) / std::sqrt(dot(a, a) * dot(b, b));
}

struct Result {
  std::vector<Json> lines;
  std::string dir;

  std::vector<double> of(std::string_view key) const { return curve(lines, key); }
  int64_t n(std::string_view key) const {
    return read_json(dir + "/summary.json").find(key)->as_int64();
  }
  SafetensorsFile adapter() const {
    return SafetensorsFile(dir + "/adapter/adapter_model.safetensors");
  }
  std::string text() const { return text_without_times(lines); }
  // Bytes of what was trained.
  std::string trained() const {
    const std::string model = dir + "/model/model.safetensors";
    return read_bytes(std::filesystem::exists(model) ? model : adapter().path());
  }
};

// Step and kind of each line of the metrics.
std::string shape_of(const std::vector<Json>& lines) {
  std::string text;
  for (const Json& line : lines)
    text += fmt::format("{} {}\n", to_text(*line.find("step")),
                        line.find("eval_loss") != nullptr ? "evaluation" : "step");
  return text;
}

class CudaRun : public testing::Test {
 protected:
  void SetUp() override { UTRAIN_NEEDS_GPU(); }
  static void TearDownTestSuite() { worst_.print_and_forget(); }

  Result run(int ranks, const Words& arguments) {
    const std::string run_dir = dir_ / fmt::format("run{}", n_runs_++);
    Words words = arguments;
    words.push_back("--run.dir=" + run_dir);
    const Outcome outcome = launch(ranks, words);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    return {read_metrics(run_dir + "/metrics.jsonl"), run_dir};
  }
  // The arguments of a golden case and more.
  Words golden(const std::string& name, const Words& more) {
    const std::string path = dir_ / (name + ".toml");
    write_bytes(path, golden_input(name, dir_ / "run"));
    Words words = {path};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  // One error line, from one rank, that says where, what, and what to do.
  void expect_refused(int ranks, const Words& arguments, const std::string& text) {
    const Outcome outcome = launch(ranks, arguments);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.text();
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
    EXPECT_NE(outcome.error_lines()[0].find(text), std::string::npos) << outcome.text();
    EXPECT_NE(outcome.error_lines()[0].find("; "), std::string::npos) << outcome.text();
  }

  TempDir dir_;
  int n_runs_ = 0;
  static inline WorstErrors worst_;
};

TEST_F(CudaRun, DropoutIsThatOfTheCpu) {
  for (const char* name : {"llama", "mistral_window", "llama_bias_rslora"}) {
    SCOPED_TRACE(name);
    const auto with_backend = [&](const std::string& backend) {
      return golden(name, {backend, "--lora.dropout=0.1", "--data.packing=true",
                           "--train.micro_batch_size=3", "--data.shuffle=true"});
    };
    const Result wanted = run(kAlone, with_backend("--run.backend=cpu"));
    const Result found = run(kAlone, with_backend(kOnGpu));
    for (const char* key : {"loss", "grad_norm"})
      worst_.expect_curve(key, found.of(key), wanted.of(key), tolerance::kCudaGoldenCurve);
    worst_.expect_tensors(found.adapter(), wanted.adapter(), tolerance::kCudaGoldenAdapter);

    const SafetensorsFile golden_file(golden_path(name) + "/golden.safetensors");
    EXPECT_GT(relative_error(found.of("loss"), values_of(golden_file, "curve.loss")), 1e-4)
        << "dropout acts";
  }
}

TEST_F(CudaRun, EqualRunsHaveEqualBits) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(fmt::format("{}, {} ranks", dtype, ranks));
      const Words arguments =
          golden("llama", {kOnGpu, kShared, fmt::format("--model.dtype={}", dtype),
                           "--lora.dropout=0.1", "--train.micro_batch_size=2"});
      const Result first = run(ranks, arguments), second = run(ranks, arguments);
      EXPECT_EQ(first.lines.size(), 10u);
      EXPECT_EQ(first.text(), second.text());
      EXPECT_TRUE(read_bytes(first.adapter().path()) == read_bytes(second.adapter().path()));
    }
  }
}

// A step is one pass, or zero3 takes all its passes together: each sum over ranks is the same sum.
TEST_F(CudaRun, StrategiesHaveEqualBits) {
  for (const auto& [name, dtype] : {std::pair{"llama", "float32"},
                                    {"llama", "bfloat16"},
                                    {"llama_full", "float32"},
                                    {"llama_full", "bfloat16"}}) {
    const auto train = [&](const std::string& strategy, const std::string& rows) {
      return run(
          4, golden(name, {kOnGpu, kShared, fmt::format("--model.dtype={}", dtype),
                           "--train.micro_batch_size=" + rows, "--parallel.strategy=" + strategy}));
    };
    const auto expect_equal = [&](const Result& found, const Result& wanted) {
      ASSERT_EQ(wanted.lines.size(), 10u);
      EXPECT_EQ(found.text(), wanted.text()) << name << " " << dtype;
      EXPECT_TRUE(found.trained() == wanted.trained());
    };
    const Result wanted = train("ddp", "8");
    for (const char* zero : {"zero1", "zero2", "zero3"}) expect_equal(train(zero, "8"), wanted);
    expect_equal(train("zero3", "1"), train("ddp", "1"));
  }
}

// Copies of six inputs run beside the computation: one that comes late shows.
TEST_F(CudaRun, OffloadHasTheBitsOfBlock) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(fmt::format("{}, {} ranks", dtype, ranks));
      Words arguments = golden("llama", {kOnGpu, kShared, fmt::format("--model.dtype={}", dtype),
                                         "--lora.dropout=0.1", "--train.micro_batch_size=2",
                                         "--data.eval=" + golden_path("llama") + "/tokens.h5"});
      for (const auto& word : more_layers("llama", dir_ / "deep", 9)) arguments.push_back(word);
      arguments.push_back("--train.recompute=block");
      const Result wanted = run(ranks, arguments);
      arguments.back() = "--train.recompute=offload";
      const Result found = run(ranks, arguments);
      EXPECT_EQ(found.text(), wanted.text());
      EXPECT_TRUE(read_bytes(found.adapter().path()) == read_bytes(wanted.adapter().path()));
    }
  }
}

TEST_F(CudaRun, HalfPrecisionFollowsFloat32) {
  for (const char* name : {"llama", "qwen2"}) {
    const SafetensorsFile wanted(golden_path(name) + "/golden.safetensors");
    for (const std::string dtype : {"bfloat16", "float16"}) {
      SCOPED_TRACE(fmt::format("{} {}", name, dtype));
      const std::string dump = dir_ / fmt::format("{}.{}", name, dtype);
      const Words arguments = golden(name, {kOnGpu, "--model.dtype=" + dtype});
      worst_.expect_curve(dtype + " loss", run(kAlone, arguments).of("loss"),
                          values_of(wanted, "curve.loss"), tolerance::kHalfCurve);

      Words dumping = arguments;
      dumping.insert(dumping.end(), {"--dump", dump});
      const Outcome outcome = launch(kAlone, dumping);
      ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
      const SafetensorsFile found(dump);
      size_t n_gradients = 0;
      for (const auto& [tensor, stored] : wanted.tensors()) {
        if (!tensor.starts_with("grad.")) continue;
        ++n_gradients;
        worst_.expect_within(dtype + " gradient, 1 - cosine",
                             one_minus_cosine(values_of(found, tensor), values_of(wanted, tensor)),
                             tolerance::kHalfGradientCosine, tensor);
      }
      EXPECT_GT(n_gradients, 0u);
    }
  }
}

// Overflowed steps are skipped, counted, and fatal to nothing.
TEST_F(CudaRun, Float16StepsThatOverflowAreSkipped) {
  TokenDataSet data = read_token_data_set(golden_path("llama_tied_down") + "/tokens.h5", 320);
  std::fill(data.loss_mask.begin(), data.loss_mask.end(), 0);
  data.loss_mask[1] = 1;  // its gradient is multiplied by the whole scale
  test::write_token_data_set(dir_ / "one.h5", data);
  const auto with_backend = [&](const std::string& backend) {
    return golden("llama_tied_down",
                  {backend, kShared, "--model.dtype=float16", "--data.train=" + (dir_ / "one.h5"),
                   "--train.global_batch_size=1"});
  };
  const Result wanted = run(kAlone, with_backend("--run.backend=cpu"));
  const int64_t n_overflows = wanted.n("overflowed_steps");
  EXPECT_GT(n_overflows, 0);
  for (const int ranks : {kAlone, 2}) {
    const Result found = run(ranks, with_backend(kOnGpu));
    EXPECT_EQ(found.n("overflowed_steps"), n_overflows);
    EXPECT_EQ(found.n("skipped_steps"), n_overflows);
    const std::vector<double> norms = found.of("grad_norm");
    ASSERT_EQ(norms.size(), 10u);
    for (size_t i = 0; i < norms.size(); ++i)
      EXPECT_EQ(std::isfinite(norms[i]), static_cast<int64_t>(i) >= n_overflows) << i + 1;
    worst_.expect_curve("float16 loss beside the CPU's", found.of("loss"), wanted.of("loss"),
                        tolerance::kHalfCurve);
  }
}

// What the device found is read a step late: nothing may be lost, doubled, or out of order.
TEST_F(CudaRun, DivergesAfterAsManyStepsAsOnTheCpu) {
  struct Case {
    const char* lr;
    int steps, exit_code;
  };
  // After one step with 1e30 the adapter is large, but finite.
  for (const auto& [lr, steps, exit_code] :
       {Case{"1e30", 1, 0}, Case{"1e39", 1, 4}, Case{"1e30", 2, 4}, Case{"1e30", 10, 4}}) {
    SCOPED_TRACE(fmt::format("lr {}, {} steps", lr, steps));
    const auto diverge = [&, lr = lr, steps = steps,
                          exit_code = exit_code](const std::string& backend) {
      const std::string run_dir = dir_ / fmt::format("diverged{}", n_runs_++);
      const Outcome outcome =
          launch(kAlone,
                 golden("llama", {backend, "--run.dir=" + run_dir, fmt::format("--train.lr={}", lr),
                                  "--train.warmup_steps=0", "--train.schedule=constant",
                                  fmt::format("--train.max_steps={}", steps)}));
      EXPECT_EQ(outcome.exit_code, exit_code) << backend << "\n" << outcome.text();
      EXPECT_EQ(outcome.error_lines().size(), exit_code == 0 ? 0u : 1u) << outcome.text();
      return shape_of(read_metrics(run_dir + "/metrics.jsonl"));
    };
    const std::string wanted = diverge("--run.backend=cpu");
    EXPECT_FALSE(wanted.empty());
    EXPECT_EQ(diverge(kOnGpu), wanted);
  }
}

TEST_F(CudaRun, WritesTheLinesOfTheCpuInTheirOrder) {
  for (const Words& more : {Words{"--eval.every=2"}, Words{"--eval.every=3"},
                            Words{"--eval.every=2", "--dry-run", "2"}, Words{"--dry-run", "1"}}) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(more, " ")));
    const auto with_backend = [&](const std::string& backend) {
      Words words =
          golden("llama", {backend, "--data.eval=" + golden_path("llama") + "/tokens.h5"});
      words.insert(words.end(), more.begin(), more.end());
      return run(kAlone, words);
    };
    const Result wanted = with_backend("--run.backend=cpu"), found = with_backend(kOnGpu);
    EXPECT_FALSE(wanted.lines.empty());
    EXPECT_EQ(shape_of(found.lines), shape_of(wanted.lines));
    worst_.expect_curve("loss", found.of("loss"), wanted.of("loss"), tolerance::kCudaGoldenCurve);
  }
}

// AdamW of the host beside the GPU's: each rounds the same operations, the GPU with fused ones.
TEST_F(CudaRun, OptimizerOnTheHostFollowsTheGpus) {
  struct Case {
    const char *name, *strategy, *dtype;
    int ranks;
  };
  for (const Case& c : {Case{"llama", "ddp", "float32", 1},
                        {"llama", "ddp", "bfloat16", 1},
                        {"llama", "zero3", "bfloat16", 2},
                        {"llama_full", "ddp", "float16", 1},
                        {"llama_full", "zero1", "float32", 2},
                        {"llama_full", "zero2", "bfloat16", 2},
                        {"llama_full", "zero3", "bfloat16", 3}}) {
    SCOPED_TRACE(fmt::format("{} in {} on {} ranks, {}", c.name, c.dtype, c.ranks, c.strategy));
    const auto train = [&](const char* offload) {
      return run(c.ranks,
                 golden(c.name, {kOnGpu, kShared, fmt::format("--model.dtype={}", c.dtype),
                                 fmt::format("--parallel.strategy={}", c.strategy),
                                 fmt::format("--parallel.offload_optimizer={}", offload)}));
    };
    const Result wanted = train("false"), found = train("true"), again = train("true");
    const bool wide = std::string(c.dtype) == "float32";
    worst_.expect_curve(wide ? "offloaded loss" : "offloaded loss, half precision",
                        found.of("loss"), wanted.of("loss"),
                        wide ? tolerance::kCudaGoldenCurve : tolerance::kHalfCurve);
    EXPECT_EQ(found.text(), again.text());
    const Json summary = read_json(found.dir + "/summary.json");
    const Json* bytes = summary.find("peak_memory_bytes");
    ASSERT_NE(bytes->find("host"), nullptr);
    EXPECT_GT(bytes->find("host")->as_int64(), 0);
    EXPECT_EQ(bytes->find("optimizer")->as_int64(), 0);
  }
}

TEST_F(CudaRun, QuickstartLearnsInBf16AsInFloat32) {
  const std::string input = source_dir() + "/input";
  const auto learn = [&](const std::string& dtype) {
    return run(kAlone, {input + "/quickstart.toml", kOnGpu, "--model.dtype=" + dtype,
                        "--model.path=" + input + "/models/tiny-llama",
                        "--data.train=" + input + "/data/definitions_train.h5",
                        "--data.eval=" + input + "/data/definitions_eval.h5", "--eval.every=250"});
  };
  const auto end = [](const std::vector<double>& losses) {
    return losses.size() < 10 ? std::nan("")
                              : std::accumulate(losses.end() - 10, losses.end(), 0.0) / 10.0;
  };
  const Result wide = learn("float32"), narrow = learn("bfloat16");
  ASSERT_EQ(wide.of("loss").size(), 250u);
  ASSERT_EQ(narrow.of("eval_loss").size(), 1u);
  EXPECT_LT(end(wide.of("loss")), 3.4) << "from 5.8";
  const auto expect_close = [&](const std::string& what, double found, double wanted) {
    worst_.expect_within("quickstart " + what, relative_error({found}, {wanted}),
                         tolerance::kHalfFinalLoss, fmt::format("{} beside {}", found, wanted));
  };
  expect_close("loss", end(narrow.of("loss")), end(wide.of("loss")));
  expect_close("eval loss", narrow.of("eval_loss")[0], wide.of("eval_loss")[0]);
}

TEST_F(CudaRun, MoreRanksThanGpusAreRefused) {
  const int ranks = static_cast<int>(visible_gpus().size()) + 1;
  for (const char* collectives : {"auto", "nccl"}) {
    SCOPED_TRACE(collectives);
    if (collectives == std::string("nccl") && !nccl_is_built()) continue;
    expect_refused(ranks,
                   golden("llama", {kOnGpu, fmt::format("--parallel.collectives={}", collectives)}),
                   "parallel.collectives = \"mpi\"");
  }
}

// Also without a GPU.
TEST(CudaRefusal, NoGpuIsVisible) {
  const TempDir dir;
  const std::string input = dir / "input.toml";
  write_bytes(input, golden_input("llama", dir / "run") + "backend = \"cuda\"\n");
  for (const int ranks : {kAlone, 2}) {
    const Outcome outcome = launch(ranks, {input});  // which hides them
    EXPECT_EQ(outcome.exit_code, 2) << outcome.text();
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
    EXPECT_NE(outcome.error_lines()[0].find("run.backend"), std::string::npos) << outcome.text();
    EXPECT_NE(outcome.error_lines()[0].find("run.backend = \"cpu\""), std::string::npos);
    EXPECT_FALSE(std::filesystem::exists(dir / "run"));
  }
}

}  // namespace
}  // namespace utrain
