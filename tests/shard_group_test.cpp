// parallel.shard_group = "node": the base over the ranks of a node changes no number and crosses no
// network. One machine stands for several nodes: ranks are started in the place of ./utrain, with a
// World of a few ranks per node.
#include <cstdlib>

#include "golden_case.h"
#include "in_place_of_utrain.h"
#include "tiny_model.h"

namespace utrain {
namespace {

using Words = std::vector<std::string>;

Outcome launch_in_nodes(int ranks, int ranks_per_node, const Words& arguments) {
  ::setenv(kRanksPerNode, std::to_string(ranks_per_node).c_str(), 1);
  return launch(ranks, arguments);
}

const Words kZero3 = {"--parallel.strategy=zero3"};
const Words kInNodes = {"--parallel.strategy=zero3", "--parallel.shard_group=node"};

struct Result {
  std::string metrics, adapter;  // every loss and norm in full; bytes
  Json summary;

  int64_t base_bytes() const { return summary.find("peak_memory_bytes")->find("base")->as_int64(); }
};

class ShardGroup : public testing::Test {
 protected:
  Result run(int ranks, int ranks_per_node, const Words& parallel, const Words& more) {
    const std::string run_dir = dir_ / fmt::format("run{}", n_runs_++);
    write_bytes(run_dir + ".toml", golden_input("llama", run_dir));
    Words arguments = {run_dir + ".toml", "--data.shuffle=true", "--lora.dropout=0.1"};
    arguments.insert(arguments.end(), parallel.begin(), parallel.end());
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = launch_in_nodes(ranks, ranks_per_node, arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    if (outcome.exit_code != 0) return {};
    Result result;
    for (const Json& line : read_metrics(run_dir + "/metrics.jsonl"))
      for (const char* key : {"step", "loss", "grad_norm"})
        result.metrics += fmt::format("{} {}\n", key, to_text(*line.find(key)));
    result.adapter = read_bytes(run_dir + "/adapter/adapter_model.safetensors");
    result.summary = read_json(run_dir + "/summary.json");
    const int nodes = (ranks + ranks_per_node - 1) / ranks_per_node;
    EXPECT_NE(outcome.out.find(fmt::format("{} on {} node", ranks, nodes)), std::string::npos)
        << outcome.text();
    return result;
  }
  static void expect_same(const Result& found, const Result& wanted) {
    EXPECT_EQ(found.metrics, wanted.metrics);
    EXPECT_TRUE(found.adapter == wanted.adapter);
    EXPECT_FALSE(wanted.adapter.empty());
  }

  TempDir dir_;
  int n_runs_ = 0;
};

TEST_F(ShardGroup, ChangesNoBitWhereAStepIsOnePass) {
  const Words one_pass = {"--train.micro_batch_size=8"};
  const Result ddp = run(4, 2, {}, one_pass), world = run(4, 2, kZero3, one_pass);
  expect_same(world, ddp);
  const Result pairs = run(4, 2, kInNodes, one_pass);
  expect_same(pairs, ddp);
  EXPECT_GT(pairs.base_bytes(), world.base_bytes());
  {
    SCOPED_TRACE("nodes of three ranks and one");
    expect_same(run(4, 3, kInNodes, one_pass), ddp);
  }
  {
    SCOPED_TRACE("a rank in each node");
    const Result single = run(4, 1, kInNodes, one_pass);
    expect_same(single, ddp);
    EXPECT_EQ(single.base_bytes(), ddp.base_bytes());
  }
  {
    SCOPED_TRACE("one node");
    const Result together = run(4, 4, kInNodes, one_pass);
    expect_same(together, ddp);
    EXPECT_EQ(together.base_bytes(), world.base_bytes());
  }
}

TEST_F(ShardGroup, ChangesNoBitOverSeveralPasses) {
  for (const Words& more : std::vector<Words>{
           {"--train.micro_batch_size=1"},
           {"--train.micro_batch_size=2", "--parallel.offload_params=true"},
           {"--data.packing=true", "--train.recompute=block", "--model.dtype=float16"}}) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(more, " ")));
    expect_same(run(4, 2, kInNodes, more), run(4, 2, kZero3, more));
  }
}

TEST_F(ShardGroup, OfOtherStrategiesIsWarnedOf) {
  write_bytes(dir_ / "ddp.toml", golden_input("llama", dir_ / "ddp"));
  const Outcome outcome =
      launch_in_nodes(2, 1, {dir_ / "ddp.toml", "--check", "--parallel.shard_group=node"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_NE(outcome.out.find("parallel.shard_group = \"node\" changes nothing"), std::string::npos)
      << outcome.text();
}

TEST_F(ShardGroup, OfWhatIsTrainedIsRefused) {
  write_bytes(dir_ / "full.toml", golden_input("llama_full", dir_ / "full"));
  Words arguments = {dir_ / "full.toml", "--check"};
  arguments.insert(arguments.end(), kInNodes.begin(), kInNodes.end());
  const Outcome outcome = launch_in_nodes(2, 1, arguments);
  EXPECT_EQ(outcome.exit_code, 2) << outcome.text();
  ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
  EXPECT_TRUE(outcome.error_lines()[0].starts_with(
      "utrain: error: parallel.shard_group: found beside train.method = \"full\""))
      << outcome.text();
}

class InNodes : public GoldenCase {};
TEST_P(InNodes, TrainsAsTransformersAndPeft) {
  ::setenv(kRanksPerNode, "2", 1);
  expect_training({tolerance::kGoldenLogits, tolerance::kGoldenLoss, tolerance::kGoldenGradient,
                   tolerance::kGoldenCurve, tolerance::kGoldenAdapter},
                  {"--parallel.shard_group=node"});
}
INSTANTIATE_TEST_SUITE_P(
    Golden, InNodes,
    testing::Values(GoldenVariant{"llama", 4, 1, true, "none", "auto", "zero3"},
                    GoldenVariant{"qwen2", 3, 4, false, "mlp", "auto", "zero3"}),
    text_of);

// Bytes of all that is gathered.
class Gathers : public SilentCollectives {
 public:
  using SilentCollectives::SilentCollectives;
  void all_gather(const Tensor& whole, const Tensor& shard) override {
    SilentCollectives::all_gather(whole, shard);
    bytes += whole.n_elem() * size_of(whole.dtype);
    slice_elems += shard.n_elem();
  }
  int64_t bytes = 0, slice_elems = 0;
};

// The first rank of the second node: the base from its node, adapters from all.
TEST(Gathered, NoWeightComesFromAnotherNode) {
  const Architecture a = tiny_architecture();
  const auto backend = make_cpu_backend(DType::f32);
  Gathers world(2, 4), node(0, 2);
  Arena arena;
  ModelState state(a, {Method::lora, all_projections(3), Strategy::zero3}, *backend, {world, node},
                   arena);
  std::vector<std::byte> memory(static_cast<size_t>(arena.bytes()) + 4096);
  void* begin = memory.data();
  size_t space = memory.size();
  arena.place(std::align(1024, static_cast<size_t>(arena.bytes()), begin, space));
  state.bind(arena);
  state.load(TinyWeights());
  Residency& residency = state.parts().residency;
  for (int64_t u = 0; u < state.layout().n_units(); ++u) {
    residency.get(u);
    residency.release(u);
  }
  int64_t base_bytes = 0, base_slice = 0;
  for (const ImageLayout& image : image_layouts(a, DType::f32)) {
    base_bytes += image.n_elem() * size_of(image.dtype);
    base_slice += Collectives::slice_size(image.n_elem(), 0, 2);
  }
  EXPECT_EQ(node.bytes, base_bytes);
  EXPECT_EQ(node.slice_elems, base_slice);
  EXPECT_EQ(world.bytes, state.layout().n_elem() * size_of(DType::f32));
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  return utrain::main_of_tests_in_nodes(argc, argv);
}
