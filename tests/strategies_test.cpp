// Where gradients, optimizer state and the base lie changes no number: the four strategies on 2, 3
// and 4 ranks, with the same bits where a step is one pass, since each sum over ranks is then the
// same sum; and float16, whose steps are skipped where they overflow, alike on any number of ranks.
#include <cmath>

#include "launch.h"
#include "token_files.h"
#include "tolerance.h"

namespace utrain {
namespace {

using Words = std::vector<std::string>;

const Words kStrategies = {"ddp", "zero1", "zero2", "zero3"};

struct Result {
  std::vector<Json> lines;
  std::string tensors;  // bytes of what was trained
  Json summary;

  std::vector<double> of(std::string_view key) const { return curve(lines, key); }
  std::string text() const { return text_without_times(lines); }
  int64_t n(std::string_view key) const { return summary.find(key)->as_int64(); }
};

class Strategies : public testing::Test {
 protected:
  Result run(const std::string& name, int ranks, const Words& more) {
    const std::string run_dir = dir_ / fmt::format("run{}", n_runs_++);
    const std::string path = run_dir + ".toml";
    write_bytes(path, golden_input(name, run_dir));
    Words arguments = {path, "--data.shuffle=true"};
    const bool full = name.ends_with("_full");
    if (!full) arguments.push_back("--lora.dropout=0.1");
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = launch(ranks, arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    if (outcome.exit_code != 0) return {};
    return {read_metrics(run_dir + "/metrics.jsonl"),
            read_bytes(run_dir +
                       (full ? "/model/model.safetensors" : "/adapter/adapter_model.safetensors")),
            read_json(run_dir + "/summary.json")};
  }

  void expect_same_bits(const std::string& name, const std::vector<int>& rank_counts,
                        const Words& strategies) {
    for (const int ranks : rank_counts) {
      Result wanted;
      for (const std::string& strategy : strategies) {
        SCOPED_TRACE(fmt::format("{} on {} ranks, {}", name, ranks, strategy));
        const Result found =
            run(name, ranks, {"--train.micro_batch_size=8", "--parallel.strategy=" + strategy});
        ASSERT_EQ(found.lines.size(), 10u);
        ASSERT_FALSE(found.tensors.empty());
        if (strategy == "ddp") wanted = found;
        EXPECT_EQ(found.text(), wanted.text());
        EXPECT_TRUE(found.tensors == wanted.tensors);
      }
    }
  }
  static void expect_near(const Result& found, const Result& wanted, const char* key) {
    const std::vector<double> a = found.of(key), b = wanted.of(key);
    ASSERT_EQ(a.size(), b.size()) << key;
    for (size_t i = 0; i < b.size(); ++i) {
      if (std::isnan(a[i]) && std::isnan(b[i])) continue;  // both overflowed
      const double error = std::fabs(a[i] - b[i]) / std::fabs(b[i]);
      EXPECT_LE(error, tolerance::kInvariance) << key << ", step " << i + 1;
      worst_ = std::max(worst_, error);
    }
  }

  static void TearDownTestSuite() { fmt::print("largest relative difference: {:.2g}\n", worst_); }

  TempDir dir_;
  int n_runs_ = 0;
  static inline double worst_ = 0.0;
};

TEST_F(Strategies, HaveEqualBitsWhereAStepIsOnePass) {
  expect_same_bits("llama", {2, 3, 4}, kStrategies);
}

// Where the base lies in host memory, copied layer by layer, and under zero3 gathered then.
TEST_F(Strategies, HaveEqualBitsWhereTheBaseIsOffloaded) {
  const Words offload = {"--parallel.offload_params=true"};
  for (const Words& more : std::vector<Words>{{"--train.micro_batch_size=8"},
                                              {"--train.micro_batch_size=1"},
                                              {"--train.recompute=block", "--data.packing=true"}}) {
    for (const auto& [ranks, strategy] : {std::pair{1, "ddp"}, {2, "zero1"}, {3, "zero3"}}) {
      SCOPED_TRACE(fmt::format("{} on {} ranks, {}", strategy, ranks, fmt::join(more, " ")));
      Words words = more;
      words.push_back(fmt::format("--parallel.strategy={}", strategy));
      const Result wanted = run("llama", ranks, words);
      words.insert(words.end(), offload.begin(), offload.end());
      const Result found = run("llama", ranks, words);
      ASSERT_EQ(found.lines.size(), 10u);
      EXPECT_EQ(found.text(), wanted.text());
      EXPECT_TRUE(found.tensors == wanted.tensors);
      const auto host = [](const Result& result) {
        return result.summary.find("peak_memory_bytes")->find("host")->as_int64();
      };
      EXPECT_GT(host(found), host(wanted));
    }
  }
}

// AdamW on the host, unit by unit as the next pass asks for them; also where a step is skipped.
TEST_F(Strategies, HaveEqualBitsWhereTheOptimizerIsOffloaded) {
  struct Case {
    const char* name;
    int ranks;
    const char* strategy;
    Words more;
  };
  const std::string whole = "--train.micro_batch_size=8", passes = "--train.micro_batch_size=1";
  for (const Case& c : std::vector<Case>{
           {"llama", 1, "ddp", {whole}},
           {"llama", 3, "ddp", {passes}},
           {"llama", 2, "zero1", {passes}},
           {"llama", 2, "zero2", {passes}},
           {"llama", 4, "zero3", {passes, "--parallel.offload_params=true"}},
           {"llama", 2, "zero3", {whole, "--model.dtype=bfloat16", "--eval.every=2"}},
           {"llama", 1, "ddp", {whole, "--model.dtype=float16"}},
           {"llama_full", 1, "ddp", {passes}},
           {"llama_full", 2, "ddp", {whole}},
           {"llama_full", 3, "zero1", {whole}},
           {"llama_full", 2, "zero2", {passes, "--model.dtype=bfloat16"}},
           {"llama_full", 3, "zero3", {passes}},
       }) {
    SCOPED_TRACE(
        fmt::format("{} on {} ranks, {} {}", c.name, c.ranks, c.strategy, fmt::join(c.more, " ")));
    Words words = c.more;
    words.push_back(fmt::format("--parallel.strategy={}", c.strategy));
    const bool evaluates = c.more.back().starts_with("--eval");
    if (evaluates) words.push_back("--data.eval=" + golden_path("llama") + "/tokens.h5");
    const Result wanted = run(c.name, c.ranks, words);
    words.push_back("--parallel.offload_optimizer=true");
    const Result found = run(c.name, c.ranks, words);
    ASSERT_EQ(found.lines.size(), evaluates ? 15u : 10u);
    EXPECT_EQ(found.text(), wanted.text());
    EXPECT_TRUE(found.tensors == wanted.tensors);
    const auto bytes = [](const Result& r, const char* memory_class) {
      const Json* bytes = r.summary.find("peak_memory_bytes")->find(memory_class);
      return bytes == nullptr ? 0 : bytes->as_int64();
    };
    EXPECT_EQ(bytes(found, "optimizer"), 0);
    EXPECT_GE(bytes(found, "host"), 2 * bytes(wanted, "optimizer"));
  }
}

// More layers than places: every layer takes the place of another one, on the way up and down.
TEST_F(Strategies, HaveEqualBitsWhereLayersTakePlacesInTurn) {
  Json many = read_json(golden_path("llama") + "/model/config.json");
  many.set("num_hidden_layers", 7);
  std::filesystem::create_directory(dir_ / "deep");
  write_bytes(dir_ / "deep/config.json", to_text(many));
  const auto deep = [&](int ranks, const Words& more) {
    Words words = {"--model.path=" + (dir_ / "deep"), "--model.init=random",
                   "--lora.init_from=", "--train.micro_batch_size=2", "--train.max_steps=3"};
    words.insert(words.end(), more.begin(), more.end());
    return run("llama", ranks, words);
  };
  const auto expect_equal = [](const Result& found, const Result& wanted) {
    ASSERT_EQ(found.lines.size(), 3u);
    EXPECT_EQ(found.text(), wanted.text());
    EXPECT_TRUE(found.tensors == wanted.tensors);
  };
  const std::string offload = "--parallel.offload_params=true";
  const Result alone = deep(kAlone, {}), offloaded = deep(kAlone, {offload});
  expect_equal(offloaded, alone);
  const auto base = [](const Result& r) {
    return r.summary.find("peak_memory_bytes")->find("base")->as_int64();
  };
  EXPECT_LT(base(offloaded), base(alone));
  const Words zero3 = {"--parallel.strategy=zero3"};
  const Result sharded = deep(3, zero3);
  expect_equal(deep(3, {zero3[0], offload}), sharded);
  const std::string optimizer = "--parallel.offload_optimizer=true";
  expect_equal(deep(3, {zero3[0], offload, optimizer}), sharded);
  expect_equal(deep(kAlone, {optimizer}), alone);
  const Result ddp = deep(3, {});
  for (const char* key : {"loss", "grad_norm"}) expect_near(sharded, ddp, key);
}

TEST_F(Strategies, HaveEqualBitsWhereEveryWeightIsTrained) {
  expect_same_bits("llama_full", {3}, kStrategies);
  expect_same_bits("llama_full", {2, 4}, {"ddp", "zero3"});
}

// zero3 takes all passes of a step through a layer while it has the layer: its gradient is summed
// over the passes first, then over ranks, as ddp's is.
TEST_F(Strategies, Zero3HasTheBitsOfDdpOverSeveralPasses) {
  for (const auto& [name, ranks] : {std::pair{"llama", 2}, {"llama", 3}, {"llama_full", 3}}) {
    SCOPED_TRACE(fmt::format("{} on {} ranks", name, ranks));
    const auto with = [&, name = name, ranks = ranks](const char* strategy) {
      return run(name, ranks,
                 {"--train.micro_batch_size=1", fmt::format("--parallel.strategy={}", strategy)});
    };
    const Result wanted = with("ddp"), found = with("zero3");
    ASSERT_EQ(found.lines.size(), 10u);
    EXPECT_EQ(found.text(), wanted.text());
    EXPECT_TRUE(found.tensors == wanted.tensors);
  }
}

TEST_F(Strategies, AgreeOverSeveralPasses) {
  for (const char* name : {"llama", "llama_full"}) {
    Result wanted;
    for (const char* strategy : {"ddp", "zero2", "zero3"}) {
      SCOPED_TRACE(fmt::format("{}, {}", name, strategy));
      const Result found = run(
          name, 2, {"--train.micro_batch_size=1", fmt::format("--parallel.strategy={}", strategy)});
      ASSERT_EQ(found.lines.size(), 10u);
      if (wanted.lines.empty()) wanted = found;
      for (const char* key : {"loss", "grad_norm"}) expect_near(found, wanted, key);
    }
  }
}

TEST_F(Strategies, Float16TrainsAlikeOnAnyNumberOfRanks) {
  const Words half = {"--model.dtype=float16"};
  const Result wide = run("llama", kAlone, {}), wanted = run("llama", kAlone, half);
  ASSERT_EQ(wanted.lines.size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    const double loss = wide.of("loss")[i];
    EXPECT_NEAR(wanted.of("loss")[i], loss, tolerance::kHalfCurve * loss) << "step " << i + 1;
  }
  EXPECT_NE(wanted.of("loss"), wide.of("loss")) << "roundings act";
  EXPECT_EQ(wanted.n("skipped_steps"), 0);
  for (const char* strategy : {"ddp", "zero3"}) {
    SCOPED_TRACE(strategy);
    const Result found =
        run("llama", 4, {half[0], fmt::format("--parallel.strategy={}", strategy)});
    for (const char* key : {"loss", "grad_norm"}) expect_near(found, wanted, key);
  }
}

// One target a step: its gradient is multiplied by the whole scale, and is too large at first.
TEST_F(Strategies, Float16SkipsStepsThatOverflow) {
  TokenDataSet data = read_token_data_set(golden_path("llama_tied_down") + "/tokens.h5", 320);
  std::fill(data.loss_mask.begin(), data.loss_mask.end(), 0);
  data.loss_mask[1] = 1;
  test::write_token_data_set(dir_ / "one.h5", data);
  const Words words = {"--model.dtype=float16", "--data.train=" + (dir_ / "one.h5"),
                       "--train.global_batch_size=1"};
  const Result wanted = run("llama_tied_down", kAlone, words);
  ASSERT_EQ(wanted.lines.size(), 10u);
  const auto n_overflows = static_cast<size_t>(wanted.n("overflowed_steps"));
  EXPECT_EQ(n_overflows, 2u) << "the hysteresis, then half the scale is small enough";
  EXPECT_EQ(wanted.n("skipped_steps"), wanted.n("overflowed_steps"));
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_TRUE(std::isfinite(wanted.of("loss")[i]));
    EXPECT_EQ(std::isfinite(wanted.of("grad_norm")[i]), i >= n_overflows) << "step " << i + 1;
  }
  EXPECT_LT(wanted.of("loss").back(), wanted.of("loss").front()) << "it learns then";
  Words offloaded = words;
  offloaded.push_back("--parallel.offload_optimizer=true");
  const Result on_host = run("llama_tied_down", kAlone, offloaded);
  EXPECT_EQ(on_host.text(), wanted.text());
  EXPECT_TRUE(on_host.tensors == wanted.tensors);
  for (const char* strategy : {"ddp", "zero3"}) {
    SCOPED_TRACE(strategy);
    Words more = words;
    more.push_back(fmt::format("--parallel.strategy={}", strategy));
    const Result found = run("llama_tied_down", 4, more);
    for (const char* key : {"loss", "grad_norm"}) expect_near(found, wanted, key);
    EXPECT_EQ(found.n("overflowed_steps"), wanted.n("overflowed_steps"));
  }
}

}  // namespace
}  // namespace utrain
