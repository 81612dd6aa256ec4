// The same numbers however the work is divided: ranks, rows a pass, accumulation, packing,
// recomputation, with dropout on; and the same bits where nothing is divided differently. The
// program is its own reference here: one process, a row a pass, no packing, nothing recomputed.
#include <cmath>

#include "io/safetensors.h"
#include "launch.h"
#include "token_files.h"
#include "tolerance.h"

namespace utrain {
namespace {

using Words = std::vector<std::string>;

struct Result {
  std::vector<Json> lines;
  std::string adapter;  // bytes
  std::string out;

  std::vector<double> of(std::string_view key) const { return curve(lines, key); }
  std::string text() const { return text_without_times(lines); }
};

class Invariance : public testing::Test {
 protected:
  Invariance() : input_(golden_input("llama", "RUN_DIR")) {
    append("lora", "dropout = 0.1");
    append("data", fmt::format("eval = \"{}/tokens.h5\"", golden_path("llama")));
  }

  void append(const std::string& section, const std::string& line) {
    const std::string head = "[" + section + "]\n";
    input_.replace(input_.find(head), head.size(), head + line + "\n");
  }
  void remove(const std::string& key) {
    const size_t begin = input_.find("\n" + key + " = ");
    ASSERT_NE(begin, input_.npos);
    input_.erase(begin, input_.find('\n', begin + 1) - begin);
  }

  Result run(int ranks, const Words& overrides) {
    const std::string run_dir = dir_ / fmt::format("run{}", n_runs_++);
    const std::string path = run_dir + ".toml";
    write_bytes(path, input_);
    Words arguments = {path, "--run.dir=" + run_dir, "--eval.every=4"};
    arguments.insert(arguments.end(), overrides.begin(), overrides.end());
    const Outcome outcome = launch(ranks, arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    return {read_metrics(run_dir + "/metrics.jsonl"),
            read_bytes(run_dir + "/adapter/adapter_model.safetensors"), outcome.out};
  }

  static void expect_near(const Result& found, const Result& wanted, const std::string& what) {
    SCOPED_TRACE(what);
    for (const char* key : {"step", "epoch", "lr", "target_tokens", "tokens", "eval_target_tokens"})
      EXPECT_EQ(found.of(key), wanted.of(key)) << key;
    ASSERT_FALSE(wanted.of("eval_loss").empty());
    for (const char* key : {"loss", "grad_norm", "eval_loss"}) expect_curve(found, wanted, key);
  }
  static void expect_curve(const Result& found, const Result& wanted, const char* key) {
    const std::vector<double> a = found.of(key), b = wanted.of(key);
    ASSERT_EQ(a.size(), b.size()) << key;
    for (size_t i = 0; i < b.size(); ++i) {
      const double error = std::fabs(a[i] - b[i]) / b[i];
      EXPECT_LE(error, tolerance::kInvariance) << key << ", value " << i + 1;
      worst_ = std::max(worst_, error);
    }
  }
  static void expect_same_bits(const Result& found, const Result& wanted) {
    EXPECT_FALSE(wanted.lines.empty());
    EXPECT_EQ(found.text(), wanted.text());
    EXPECT_TRUE(found.adapter == wanted.adapter);
  }

  static void TearDownTestSuite() { fmt::print("largest relative difference: {:.2g}\n", worst_); }

  TempDir dir_;
  std::string input_;
  int n_runs_ = 0;
  static inline double worst_ = 0.0;
};

TEST_F(Invariance, OneStepHasAllDocuments) {
  const Result wanted = run(kAlone, {"--data.packing=false", "--train.recompute=none"});
  const Result no_dropout =
      run(kAlone, {"--data.packing=false", "--train.recompute=none", "--lora.dropout=0"});
  EXPECT_GT(std::fabs(no_dropout.of("loss")[0] - wanted.of("loss")[0]), 1e-3) << "dropout acts";
  // lr is 0 in the first step: the second sees the same parameters in another epoch.
  EXPECT_EQ(no_dropout.of("loss")[1], no_dropout.of("loss")[0]);
  EXPECT_GT(std::fabs(wanted.of("loss")[1] - wanted.of("loss")[0]), 1e-3) << "epochs differ";
  const Result still = run(kAlone, {"--data.packing=false", "--train.lr=1e-30"});
  EXPECT_NEAR(still.of("eval_loss")[0], no_dropout.of("loss")[0], 1e-5) << "none in evaluation";
  EXPECT_EQ(wanted.of("step").size(), 10u + 3u);

  struct Variant {
    int ranks;
    Words overrides;
  };
  const std::string packed = "--data.packing=true", rows = "--data.packing=false",
                    micro = "--train.micro_batch_size=", recompute = "--train.recompute=",
                    seq_len = "--data.seq_len=";
  const std::vector<Variant> variants = {
      {1, {rows, micro + "8", recompute + "none"}},  // one big pass
      {1, {rows, micro + "3", recompute + "mlp"}},   // the last pass is short
      {1, {packed, micro + "1", recompute + "block"}},
      {1, {packed, micro + "4", recompute + "auto", seq_len + "512"}},  // all in one row
      {2, {rows, micro + "1", recompute + "none"}},
      {2, {rows, micro + "4", recompute + "block"}},
      {2, {packed, micro + "2", recompute + "mlp"}},
      {3, {rows, micro + "1", recompute + "mlp"}},  // 3, 3 and 2 rows
      {3, {rows, micro + "2", recompute + "none"}},
      {3, {packed, micro + "1", recompute + "none"}},
      {3, {packed, micro + "1", recompute + "block", seq_len + "100"}},
      {4, {rows, micro + "2", recompute + "block"}},
      {4, {packed, micro + "2", recompute + "mlp", seq_len + "48"}},
      {4, {packed, micro + "1", recompute + "none", seq_len + "512"}},  // three ranks idle
      {4, {packed, micro + "8", recompute + "auto", seq_len + "128"}},  // two ranks idle
  };
  for (const auto& [ranks, overrides] : variants) {
    const Result found = run(ranks, overrides);
    expect_near(found, wanted, fmt::format("{} ranks {}", ranks, fmt::join(overrides, " ")));
  }
}

TEST_F(Invariance, ShortLastStepsAndShuffledEpochs) {
  remove("max_steps");
  for (const char* packing : {"--data.packing=false", "--data.packing=true"}) {
    const Words common = {packing, "--train.epochs=3", "--train.global_batch_size=3",
                          "--data.shuffle=true"};
    const auto with = [&](Words more) {
      more.insert(more.end(), common.begin(), common.end());
      return more;
    };
    const Result wanted = run(kAlone, with({}));
    const std::vector<double> tokens = wanted.of("tokens"), epochs = wanted.of("epoch");
    const size_t n = tokens.size() / 3;
    ASSERT_EQ(tokens.size(), 3 * n);
    EXPECT_EQ(epochs.back(), 3.0);
    const auto sum_of_epoch = [&](size_t e) {
      double sum = 0.0;
      for (size_t i = 0; i < n; ++i) sum += tokens[e * n + i];
      return sum;
    };
    for (size_t e = 0; e < 3; ++e)
      EXPECT_EQ(sum_of_epoch(e), 220.0) << "nothing twice, nothing lost";
    const auto epoch = [&](size_t e) {
      return std::vector<double>(tokens.begin() + static_cast<std::ptrdiff_t>(e * n),
                                 tokens.begin() + static_cast<std::ptrdiff_t>((e + 1) * n));
    };
    EXPECT_FALSE(epoch(0) == epoch(1) && epoch(1) == epoch(2)) << "each epoch has its own order";

    expect_near(run(2, with({"--train.recompute=mlp"})), wanted, "2 ranks");
    expect_near(run(3, with({"--train.recompute=block"})), wanted, "3 ranks");
    expect_near(run(4, with({"--train.micro_batch_size=2"})), wanted, "4 ranks");
    expect_same_bits(run(1, with({})), wanted);
    const Result other_seed = run(kAlone, with({"--train.seed=1"}));
    EXPECT_NE(other_seed.of("tokens"), tokens);
  }
}

TEST_F(Invariance, EqualRunsHaveEqualBits) {
  for (const int ranks : {1, 3}) {
    const Words overrides = {"--train.micro_batch_size=2", "--data.shuffle=true"};
    expect_same_bits(run(ranks, overrides), run(ranks, overrides));
  }
}

TEST_F(Invariance, RecomputationHasEqualBits) {
  const Result wanted = run(2, {"--train.recompute=none"});
  expect_same_bits(run(2, {"--train.recompute=mlp"}), wanted);
  expect_same_bits(run(2, {"--train.recompute=block"}), wanted);
}

TEST_F(Invariance, OffloadHasTheBitsOfBlock) {
  const Words deep = more_layers("llama", dir_ / "deep", 6);  // the first three inputs are copied
  const std::string packed = "--data.packing=true", rows = "--data.packing=false",
                    micro = "--train.micro_batch_size=", zero3 = "--parallel.strategy=zero3";
  const std::vector<std::pair<int, Words>> variants = {{1, {packed, micro + "1"}},
                                                       {1, {rows, micro + "3"}},
                                                       {2, {packed, micro + "2"}},
                                                       {3, {rows, micro + "1"}},
                                                       {4, {packed, micro + "1", zero3}}};
  for (const auto& [ranks, overrides] : variants) {
    SCOPED_TRACE(fmt::format("{} ranks {}", ranks, fmt::join(overrides, " ")));
    Words words = overrides;
    words.insert(words.end(), deep.begin(), deep.end());
    words.push_back("--train.recompute=block");
    const Result wanted = run(ranks, words);
    words.back() = "--train.recompute=offload";
    const Result found = run(ranks, words);
    expect_same_bits(found, wanted);
    // Of the start table; the copy for checkpoints lies there in any case.
    const auto host = [](const Result& result) {
      const size_t at = result.out.find(" host ");
      return at == std::string::npos ? "" : result.out.substr(at, result.out.find('\n', at) - at);
    };
    EXPECT_NE(host(found), host(wanted)) << wanted.out << found.out;
    EXPECT_NE(found.out.find("6 of 6 layers compute the block again from host memory"),
              std::string::npos)
        << found.out;
  }
}

TEST_F(Invariance, AccumulationStepsAreAGlobalBatch) {
  const Words both = {"--train.micro_batch_size=2", "--data.packing=false"};
  const Result wanted = run(2, {both[0], both[1], "--train.global_batch_size=4"});
  const Result other = run(2, {both[0], both[1], "--train.global_batch_size=8"});
  EXPECT_NE(other.text(), wanted.text());
  remove("global_batch_size");
  expect_same_bits(run(2, {both[0], both[1], "--train.gradient_accumulation_steps=1"}), wanted);
  expect_same_bits(run(2, {both[0], both[1], "--train.gradient_accumulation_steps=2"}), other);
}

TEST_F(Invariance, OnlyTargetsCount) {
  const TokenDataSet golden = read_token_data_set(golden_path("llama") + "/tokens.h5", 320);
  const auto run_on = [&](const TokenDataSet& data, const std::string& name, int ranks) {
    test::write_token_data_set(dir_ / name, data);
    return run(ranks, {"--data.packing=false", "--data.train=" + (dir_ / name)});
  };
  const Result wanted = run_on(golden, "golden.h5", 2);

  TokenDataSet first = golden;  // no token predicts the first of a document
  for (int64_t d = 0; d < first.n_documents(); ++d) {
    const auto i = static_cast<size_t>(first.offsets[static_cast<size_t>(d)]);
    first.loss_mask[i] = 1 - first.loss_mask[i];
  }
  expect_same_bits(run_on(first, "first.h5", 2), wanted);

  TokenDataSet untargeted = golden;  // a document more, without a target
  for (int32_t i = 0; i < 20; ++i) untargeted.tokens.push_back(i);
  untargeted.loss_mask.resize(untargeted.tokens.size(), 0);
  untargeted.offsets.push_back(untargeted.n_tokens());
  const Result dropped = run_on(untargeted, "untargeted.h5", 2);
  expect_same_bits(dropped, wanted);
  EXPECT_NE(dropped.out.find("1 documents without a target dropped"), std::string::npos)
      << dropped.out;

  TokenDataSet longer = golden;  // tokens after the last target change no prediction
  longer.tokens.clear(), longer.loss_mask.clear(), longer.offsets = {0};
  for (size_t d = 0; d + 1 < golden.offsets.size(); ++d) {
    for (int64_t i = golden.offsets[d]; i < golden.offsets[d + 1]; ++i) {
      longer.tokens.push_back(golden.tokens[static_cast<size_t>(i)]);
      longer.loss_mask.push_back(golden.loss_mask[static_cast<size_t>(i)]);
    }
    for (size_t i = 0; i <= d; ++i) longer.tokens.push_back(7), longer.loss_mask.push_back(0);
    longer.offsets.push_back(longer.n_tokens());
  }
  const Result padded = run_on(longer, "longer.h5", 3);
  EXPECT_EQ(padded.of("target_tokens"), wanted.of("target_tokens"));
  EXPECT_EQ(padded.of("tokens")[0], 220.0 + 36.0);
  for (const char* key : {"loss", "grad_norm"}) expect_curve(padded, wanted, key);

  TokenDataSet fewer = golden;
  for (size_t i = 1; i < fewer.loss_mask.size(); ++i) {
    if (fewer.loss_mask[i - 1] == 1) {
      fewer.loss_mask[i] = 0;
      break;
    }
  }
  const Result less = run_on(fewer, "fewer.h5", 2);
  EXPECT_EQ(less.of("target_tokens")[0], wanted.of("target_tokens")[0] - 1.0);
  EXPECT_GT(std::fabs(less.of("loss")[0] - wanted.of("loss")[0]), 1e-4);
}

}  // namespace
}  // namespace utrain
