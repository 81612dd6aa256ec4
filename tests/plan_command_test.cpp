// --plan puts the strategies side by side, without a GPU and without touching a weight; a run takes
// what was planned.
#include "launch.h"
#include "plan_case.h"
#include "token_files.h"

namespace utrain {
namespace {

using Words = std::vector<std::string>;

class PlanCommand : public testing::Test {
 protected:
  static Json plan(const Words& words, int ranks = kAlone) {
    Words all = words;
    all.insert(all.end(), {"--plan", "--json"});
    const Outcome outcome = launch(ranks, all);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    EXPECT_LT(outcome.seconds, 5.0);
    return parse_json(outcome.out, "--plan --json");
  }
  static int64_t number(const Json& json, const char* object, const char* key) {
    return json.find(object)->find(key)->as_int64();
  }
  // What holds in every plan.
  static void expect_sums(const Json& plan) {
    const Json::Array& strategies = plan.find("strategies")->as_array();
    ASSERT_EQ(strategies.size(), kStrategies.size());
    const int64_t budget = plan.find("budget_bytes")->as_int64();
    for (size_t i = 0; i < strategies.size(); ++i) {
      const Json& s = strategies[i];
      EXPECT_EQ(s.find("strategy")->as_string(), kStrategies[i]);
      int64_t total = 0;
      for (const MemoryClass m : kMemoryClasses)
        if (m != MemoryClass::host)
          total += number(s, "memory_bytes", std::string(name_of(m)).c_str());
      EXPECT_EQ(number(s, "memory_bytes", "total"), total);
      const int64_t needed = number(s, "memory_bytes", "needed");
      EXPECT_GE(needed, total);
      EXPECT_EQ(s.find("fits")->as_bool(), needed <= budget);
      int64_t sent = 0;
      for (const char* kind : {"all_reduce", "reduce_scatter", "all_gather"})
        sent += number(s, "sent_bytes_per_step", kind);
      EXPECT_EQ(number(s, "sent_bytes_per_step", "total"), sent);
      EXPECT_GT(s.find("flops_per_step")->as_double(), 0.0);
      for (const Json& link : s.find("transfer")->as_array()) {
        EXPECT_DOUBLE_EQ(
            link.find("seconds")->as_double() * link.find("bytes_per_second")->as_double(),
            static_cast<double>(sent));
      }
    }
  }
  std::string bench_data(int64_t length) const {
    const std::string path = dir_ / "bench.h5";
    test::write_token_data_set(path,
                               test::make_token_data_set(std::vector<int64_t>(64, length), 128256));
    return path;
  }

  // A copy of input_text in a file, and these words.
  Words words_of(const Words& more) const {
    write_bytes(dir_ / "plan.toml", input_text(kTwoRows));
    Words words = {dir_ / "plan.toml", "--run.backend=cpu", "--run.dir=" + (dir_ / "run")};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  TempDir dir_;
};

TEST_F(PlanCommand, QuickstartAsJson) {
  const std::string at = source_dir() + "/input/";
  const Words words = {at + "quickstart.toml", "--model.path=" + at + "models/tiny-llama",
                       "--data.train=" + at + "data/definitions_train.h5",
                       "--data.eval=" + at + "data/definitions_eval.h5"};
  Words four_ranks = words;
  four_ranks.insert(four_ranks.end(), {"--ranks", "4"});
  const Json four = plan(four_ranks);
  expect_sums(four);
  EXPECT_EQ(four.find("ranks")->as_int64(), 4);
  EXPECT_EQ(four.find("backend")->as_string(), "cuda");
  EXPECT_EQ(four.find("dtype")->as_string(), "bfloat16");
  EXPECT_EQ(four.find("take")->as_string(), "ddp");
  // As many ranks as there are, told once.
  const Json two = plan(words_of({}), 2);
  expect_sums(two);
  EXPECT_EQ(two.find("ranks")->as_int64(), 2);
  EXPECT_EQ(two.find("dtype")->as_string(), "float32");
  EXPECT_TRUE(two.find("gpu_memory_gb")->is_null());
}

TEST_F(PlanCommand, BenchmarksInTime) {
  const std::string path = bench_data(4096);
  const std::string at = source_dir() + "/input/";
  const Words paths_8b = {at + "bench_8b.toml", "--model.path=" + at + "bench/llama-8b",
                          "--data.train=" + path, "--ranks=4"};
  const Json lora = plan(paths_8b);
  expect_sums(lora);
  EXPECT_EQ(lora.find("take")->as_string(), "ddp");
  EXPECT_TRUE(lora.find("gpu_memory_is_assumed")->as_bool());
  // 8.03 B parameters in bfloat16, whole.
  EXPECT_NEAR(
      static_cast<double>(number(lora.find("strategies")->as_array()[0], "memory_bytes", "base")),
      2.0 * 8.03e9, 0.01e9);
  Words full = paths_8b;
  full.insert(full.end(), {"--train.method=full", "--run.gpu_memory_gb=80"});
  const Json all_weights = plan(full);
  expect_sums(all_weights);
  EXPECT_FALSE(all_weights.find("gpu_memory_is_assumed")->as_bool());
  EXPECT_EQ(all_weights.find("take")->as_string(), "zero2");
  full.back() = "--run.gpu_memory_gb=20";
  const Json too_small = plan(full);
  expect_sums(too_small);
  EXPECT_TRUE(too_small.find("take")->is_null());
  EXPECT_TRUE(too_small.find("why")->as_string().starts_with("none fits: zero3 needs the least"));

  const Words paths_1b = {at + "bench_1b.toml",   "--model.path=" + at + "bench/llama-1b",
                          "--data.train=" + path, "--data.seq_len=4096",
                          "--train.method=full",  "--ranks=4"};
  const Json small = plan(paths_1b);
  expect_sums(small);
  EXPECT_EQ(small.find("take")->as_string(), "zero1");
}

TEST_F(PlanCommand, TableShowsTheSame) {
  const Outcome outcome = launch(kAlone, words_of({"--plan", "--ranks=4"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  for (const char* text :
       {"LoRA on 4 ranks, float32 on the CPU", "ddp", "zero3", "base", "memory a rank",
        "sent a rank and step", "at 50 GB/s (400 Gbit/s network)", "\ntake ddp: it fits, "})
    EXPECT_NE(outcome.out.find(text), std::string::npos) << text << "\n" << outcome.out;
}

TEST_F(PlanCommand, ARunTakesWhatWasPlanned) {
  for (const char* strategy : {"zero1", "zero3"}) {
    const Outcome outcome = launch(
        2, words_of({"--run.overwrite=true", fmt::format("--parallel.strategy={}", strategy)}));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
    EXPECT_NE(outcome.out.find("  warning    parallel.strategy: "), std::string::npos);
    EXPECT_NE(outcome.out.find("  exposed    "), std::string::npos);
    const Json summary = read_json(dir_ / "run/summary.json");
    const double exposed = summary.find("exposed_communication_percent")->as_double();
    EXPECT_GT(exposed, 0.0);
    EXPECT_LT(exposed, 100.0);
    Job job = job_of(2, kTwoRows);
    const StrategyPlan planned = plan_strategy(job, strategy, kCpu);
    for (const MemoryClass m : kMemoryClasses) {
      const auto taken = static_cast<double>(
          number(summary, "peak_memory_bytes", std::string(name_of(m)).c_str()));
      EXPECT_NEAR(taken, static_cast<double>(planned.bytes_of(m)), 0.05 * taken) << name_of(m);
    }
  }
  const Outcome alone = launch(kAlone, words_of({"--run.overwrite=true"}));
  ASSERT_EQ(alone.exit_code, 0) << alone.text();
  EXPECT_EQ(alone.out.find("  exposed    "), std::string::npos);
  EXPECT_TRUE(
      read_json(dir_ / "run/summary.json").find("exposed_communication_percent")->is_null());
}

TEST_F(PlanCommand, RefusesWhatItCannotMean) {
  const std::vector<Words> cases = {
      {"--plan", "--ranks=0"}, {"--plan", "--ranks=-1"}, {"--json"},
      {"--ranks=4"},           {"--plan", "--check"},    {"--plan", "--data.train=none.h5"},
      {"--plan", "--json=yes"}};
  for (const Words& words : cases) {
    const Outcome outcome = launch(kAlone, words_of(words));
    EXPECT_EQ(outcome.exit_code, 2) << outcome.text();
    EXPECT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
    EXPECT_EQ(outcome.out, "");
  }
  const Outcome run = launch(kAlone, words_of({"--parallel.collectives=nccl"}));
  const Outcome planned = launch(kAlone, words_of({"--plan", "--parallel.collectives=nccl"}));
  EXPECT_TRUE(planned.exit_code == 2 && planned.error_lines() == run.error_lines())
      << planned.text();
  const std::string path = words_of({}).front();
  EXPECT_EQ(launch(kAlone, {path, "--plan", "--run.gpu_memory_gb=1e300"}).exit_code, 2);
  const Outcome in_nodes = launch(kAlone, {path, "--plan", "--ranks=4", "--parallel.strategy=zero3",
                                           "--parallel.shard_group=node"});
  EXPECT_NE(in_nodes.out.find("zero3 is planned as one node of all ranks"), std::string::npos)
      << in_nodes.text();
  // The ranks that make the plan know their node.
  for (const char* ranks : {"", "--ranks=2"}) {
    Words words = words_of({"--plan", "--parallel.strategy=zero3", "--parallel.shard_group=node"});
    if (*ranks != 0) words.push_back(ranks);
    const Outcome known = launch(2, words);
    EXPECT_EQ(known.exit_code, 0) << known.text();
    EXPECT_EQ(known.out.find("how many ranks a node has"), std::string::npos) << known.text();
  }
  const Outcome small = launch(kAlone, {path, "--plan", "--run.gpu_memory_gb=0.05"});
  EXPECT_EQ(small.exit_code, 2) << small.text();
  EXPECT_NE(small.err.find("run.gpu_memory_gb: 0.05 GB, of which libraries hold 67.1 MB; raise it"),
            std::string::npos)
      << small.text();
}

}  // namespace
}  // namespace utrain
