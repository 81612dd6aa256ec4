// train.recompute = "auto" on the CPU: what the ranks of a node may share decides, all ranks choose
// alike, and no number changes. Ranks are started in the place of ./utrain, on machines with as much
// memory as a test says.
#include <cstdlib>
#include <regex>

#include "comm/silent_collectives.h"
#include "core/available_memory.h"
#include "golden_case.h"
#include "in_place_of_utrain.h"
#include "train/choose_recompute.h"
#include "train/trainer.h"

namespace utrain {

namespace {

constexpr const char* kOfFirst = "UTRAIN_HOST_MEMORY_TEST_OF_FIRST_RANK";
constexpr const char* kOfOthers = "UTRAIN_HOST_MEMORY_TEST_OF_OTHERS";

}  // namespace

// In the place of the library's.
int64_t available_memory(const std::string& /*root*/) {
  return std::atoll(std::getenv(World::rank_by_launcher() == 0 ? kOfFirst : kOfOthers));
}

namespace {

constexpr int64_t kPlenty = int64_t{1} << 40;

struct Result {
  std::string recompute, numbers, adapter;  // of the start table; losses and norms in full; bytes
};

class HostMemory : public testing::Test {
 protected:
  std::string input() {
    const std::string run_dir = dir_ / fmt::format("run{}", n_runs_++);
    write_bytes(run_dir + ".toml", golden_input("llama", run_dir));
    return run_dir;
  }
  static void set_machine(int ranks_per_node, int64_t of_first, int64_t of_others) {
    ::setenv(kRanksPerNode, std::to_string(ranks_per_node).c_str(), 1);
    ::setenv(kOfFirst, std::to_string(of_first).c_str(), 1);
    ::setenv(kOfOthers, std::to_string(of_others).c_str(), 1);
  }
  Result run(int ranks_per_node, int64_t of_first, int64_t of_others) {
    set_machine(ranks_per_node, of_first, of_others);
    const std::string run_dir = input();
    const Outcome outcome = launch(2, {run_dir + ".toml", kSharded});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    if (outcome.exit_code != 0) return {};
    Result result;
    const size_t begin = outcome.out.find("  recompute ");
    result.recompute = outcome.out.substr(begin, outcome.out.find('\n', begin) - begin);
    for (const Json& line : read_metrics(run_dir + "/metrics.jsonl"))
      for (const char* key : {"step", "loss", "grad_norm"})
        result.numbers += fmt::format("{} {}\n", key, to_text(*line.find(key)));
    result.adapter = read_bytes(run_dir + "/adapter/adapter_model.safetensors");
    return result;
  }
  // What a rank of two needs where nothing is computed again, or as `recompute` says; host: of that,
  // the copy that checkpoints are written from.
  struct Needed {
    int64_t all, host;
  };
  Needed needed(int rank, const std::string& recompute = "none") {
    Config config = read_config(input() + ".toml",
                                {{"parallel.strategy", "zero1"}, {"train.recompute", recompute}});
    const Job job = read_job(config, 2);
    const auto backend = make_cpu_backend(DType::f32);
    SilentCollectives collectives(rank, 2);
    const Trainer trainer(job, *backend, collectives,
                          wanted_recompute(job, *backend, collectives, {kPlenty}));
    const int64_t host = trainer.arena().host_bytes();
    return {trainer.arena().bytes() + host, host};
  }
  int64_t all_kept(int rank) { return needed(rank).all; }
  // What has this left for each of so many ranks.
  static int64_t for_each(int64_t bytes, int ranks) { return (bytes * ranks * 10 + 8) / 9; }
  static void expect_same_numbers(const Result& found, const Result& wanted) {
    EXPECT_EQ(found.numbers, wanted.numbers);
    EXPECT_FALSE(wanted.adapter.empty());
    EXPECT_TRUE(found.adapter == wanted.adapter);
  }
  static constexpr const char* kSharded = "--parallel.strategy=zero1";

  TempDir dir_;
  int n_runs_ = 0;
};

TEST_F(HostMemory, IsSharedByTheRanksOfANode) {
  const int64_t kept = all_kept(1);
  const Result all = run(2, kPlenty, kPlenty);
  EXPECT_NE(all.recompute.find("keep all"), std::string::npos) << all.recompute;
  const int64_t for_two = for_each(kept, 2), less = for_two / 20 * 19;
  EXPECT_EQ(run(2, for_two, for_two).recompute, all.recompute);
  const Result together = run(2, less, less);
  EXPECT_NE(together.recompute, all.recompute);
  expect_same_numbers(together, all);
  EXPECT_EQ(run(1, less, less).recompute, all.recompute) << "a node each";
}

TEST_F(HostMemory, OfTheNodeThatHasTheLeastDecides) {
  const int64_t less = for_each(all_kept(1), 1) / 20 * 19;
  const Result all = run(1, kPlenty, kPlenty);
  const Result first = run(1, less, kPlenty), other = run(1, kPlenty, less);
  EXPECT_NE(first.recompute, all.recompute);
  EXPECT_EQ(first.recompute, other.recompute);
  expect_same_numbers(first, all);
  expect_same_numbers(other, all);
}

// Slices differ by a block: where only the smaller one would do without, both compute again.
TEST_F(HostMemory, OfTheRankThatNeedsTheMostDecides) {
  const int64_t first = all_kept(0), last = all_kept(1);
  ASSERT_LT(first, last);
  const Result all = run(1, kPlenty, kPlenty);
  const Result between = run(1, for_each(first, 1), for_each(first, 1));
  EXPECT_NE(between.recompute, all.recompute);
  expect_same_numbers(between, all);
}

// The copy that checkpoints are written from is of the same memory.
TEST_F(HostMemory, HoldsTheCopyForCheckpointsToo) {
  const Needed none = needed(1);
  const int64_t keep = for_each(none.all, 2), block = for_each(needed(1, "block").all, 2),
                copy = for_each(none.host, 2);
  ASSERT_GT(copy, 0);
  const Result all = run(2, keep, keep);
  for (const int64_t there : {keep - 4, keep - copy / 2, (keep + block) / 2, block + 4}) {
    SCOPED_TRACE(fmt::format("{} between {} and {}", there, block, keep));
    const Result found = run(2, there, there);
    EXPECT_NE(found.recompute, all.recompute);
    expect_same_numbers(found, all);
  }
  const std::string path = input() + ".toml";
  set_machine(2, block + 4, block + 4);
  const Outcome plan = launch(2, {path, "--plan", kSharded});
  EXPECT_EQ(plan.out.find("zero1 does not fit"), std::string::npos) << plan.text();
  set_machine(2, block - 40, block - 40);
  const Outcome refused = launch(2, {path, kSharded});
  EXPECT_EQ(refused.exit_code, 2) << refused.text();
  std::smatch texts;
  const std::regex numbers("memory: ([0-9.]+ [GM]B) needed on each rank, ([0-9.]+ [GM]B) free");
  ASSERT_TRUE(std::regex_search(refused.err, texts, numbers)) << refused.text();
  EXPECT_NE(texts[1], texts[2]);
  EXPECT_EQ(refused.err.find("offload"), std::string::npos) << "it is the same memory";
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  return utrain::main_of_tests_in_nodes(argc, argv);
}
