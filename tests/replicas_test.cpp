// What ranks hold alike is compared: who holds something else is named, and nobody where all is well.
#include "failing_ranks.h"

namespace utrain {
namespace {

using Words = std::vector<std::string>;

// A rank's text: of the kinds that are not given, nothing is held.
std::string text_of(const std::string& base, const std::string& values = "0/1 0 1") {
  return base + "\n" + values + "\n0/1 0 1\n0/1 0 1\n";
}
Words hosts(size_t n) {
  Words hosts;
  for (size_t i = 0; i < n; ++i) hosts.push_back(fmt::format("node{}", i / 2));
  return hosts;
}
std::string values_of(const Words& sums) {
  Words texts;
  for (const std::string& sum : sums) texts.push_back(text_of("0/1 7 1", "0/1 " + sum + " 1"));
  return differences(texts, hosts(sums.size()));
}

TEST(Differences, AreNoneWhereAllIsEqual) {
  EXPECT_EQ(values_of({"5", "5", "5", "5"}), "");
  EXPECT_EQ(values_of({"281474976710655"}), "");
}

TEST(Differences, AreOfTheFewer) {
  const std::string values = "the working weights of ";
  EXPECT_EQ(values_of({"5", "5", "6", "5"}),
            values + "rank 2 on node1 are not those of the other ranks");
  EXPECT_EQ(values_of({"6", "5", "5", "7", "5"}),
            values + "ranks 0 on node0, 3 on node1 are not those of the other ranks");
}

TEST(Differences, NameAllWhereNobodyCanTell) {
  const std::string values = "the working weights of ";
  EXPECT_EQ(values_of({"5", "6"}),
            values + "ranks 0 on node0, 1 on node0 differ, and which are right cannot be told");
  EXPECT_EQ(values_of({"5", "6", "6", "5", "1"}),
            values +
                "ranks 0 on node0, 1 on node0, 2 on node1, 3 on node1, 4 on node2 differ, and "
                "which are right cannot be told");
}

TEST(Differences, OfWhatChangedNameItAlone) {
  EXPECT_EQ(differences({text_of("0/1 7 1"), text_of("0/1 8 0")}, hosts(2)),
            "the frozen base weights of rank 1 on node0 are not what was loaded");
}

TEST(Differences, AreOfEqualSlicesAlone) {
  const Words nodes = {text_of("0/2 7 1"), text_of("1/2 8 1"), text_of("0/2 7 1"),
                       text_of("1/2 8 1"), text_of("0/2 9 1")};
  EXPECT_EQ(differences({nodes.begin(), nodes.begin() + 4}, hosts(4)), "");
  EXPECT_EQ(differences(nodes, hosts(5)),
            "the frozen base weights of rank 4 on node2 are not those of the other ranks");
}

TEST(Differences, AreListedUpToEight) {
  Words sums(25, "5");
  for (size_t i = 0; i < 11; ++i) sums[i] = fmt::format("1{}", i);
  EXPECT_NE(values_of(sums).find("7 on node3 and 3 more are not"), std::string::npos)
      << values_of(sums);
}

class InRanks : public testing::Test {
 protected:
  Words arguments(const std::string& golden, const Words& more) {
    const std::string run_dir = dir_ / fmt::format("run{}", n_runs_++);
    write_bytes(run_dir + ".toml", golden_input(golden, run_dir));
    Words words = {run_dir + ".toml"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static void expect_named(const Outcome& outcome, const std::string& step,
                           const std::string& found) {
    EXPECT_EQ(outcome.exit_code, 71) << outcome.text();
    ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
    const std::string line = outcome.error_lines()[0];
    EXPECT_TRUE(line.starts_with("utrain: error: " + step + ": ")) << line;
    EXPECT_NE(line.find(found), std::string::npos) << line;
  }

  TempDir dir_;
  int n_runs_ = 0;
};

TEST_F(InRanks, AFlippedBitOfTheBaseIsFoundUnderEveryStrategy) {
  for (const Words& strategy :
       std::vector<Words>{{"--parallel.strategy=ddp"},
                          {"--parallel.strategy=zero1"},
                          {"--parallel.strategy=zero2"},
                          {"--parallel.strategy=zero3"},
                          {"--parallel.strategy=zero3", "--parallel.shard_group=node"}}) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(strategy, " ")));
    expect_named(
        launch_failing(4, memory_fault(ReplicaKind::base, 2, 3), arguments("llama", strategy), 2),
        "step 10", "the frozen base weights of rank 2 on ");
  }
}

TEST_F(InRanks, AFlippedBitOfWhatIsTrainedIsFoundWhereItIsReplicated) {
  struct Case {
    std::string golden, strategy;
    ReplicaKind kind;
    int step;
  };
  for (const Case& c : std::vector<Case>{{"llama", "ddp", ReplicaKind::values, 3},
                                         {"llama", "ddp", ReplicaKind::moments, 8},
                                         {"llama_full", "ddp", ReplicaKind::values, 3},
                                         {"llama", "zero1", ReplicaKind::values, 10},
                                         {"llama", "zero2", ReplicaKind::values, 10},
                                         {"llama_full", "zero2", ReplicaKind::values, 10}}) {
    SCOPED_TRACE(
        fmt::format("{} {} {}", c.golden, c.strategy, kReplicaNames[static_cast<size_t>(c.kind)]));
    expect_named(launch_failing(4, memory_fault(c.kind, 1, c.step),
                                arguments(c.golden, {"--parallel.strategy=" + c.strategy})),
                 "step 10",
                 fmt::format("the {} of rank 1 on ", kReplicaNames[static_cast<size_t>(c.kind)]));
  }
}

TEST_F(InRanks, OfTwoBothAreNamed) {
  expect_named(launch_failing(2, memory_fault(ReplicaKind::values, 1, 3), arguments("llama", {})),
               "step 10", "differ, and which are right cannot be told");
}

TEST_F(InRanks, OneAloneKnowsItsBase) {
  expect_named(launch_failing(1, memory_fault(ReplicaKind::base, 0, 3), arguments("llama", {})),
               "step 10", "the frozen base weights of rank 0 on ");
}

// The whole program: gradients, or gathered weights, that arrive changed at one rank.
TEST_F(InRanks, WhatArrivesChangedIsFoundAfterTheLastStep) {
  for (const char* strategy : {"ddp", "zero1"}) {
    SCOPED_TRACE(strategy);
    const Words words = arguments(
        "llama", {fmt::format("--parallel.strategy={}", strategy), "--checkpoint.every=10"});
    expect_named(launch_failing(4, "links 3", words), "step 10",
                 "the working weights of rank 3 on ");
    const std::string run = dir_ / fmt::format("run{}", n_runs_ - 1);
    EXPECT_EQ(read_json(run + "/summary.json").find("exit_code")->as_int64(), 71);
    EXPECT_FALSE(std::filesystem::exists(run + "/checkpoints/step-00000010"))
        << "nothing goes on from what differs";
  }
}

TEST_F(InRanks, AndEveryHundredSteps) {
  const Words words = arguments("llama", {"--train.max_steps=150"});
  expect_named(launch_failing(4, "links 3", words), "step 100",
               "the working weights of rank 3 on ");
}

TEST_F(InRanks, NothingIsFoundWhereAllIsWell) {
  for (const Words& words : std::vector<Words>{
           arguments("llama", {"--train.max_steps=101", "--lora.dropout=0.1"}),
           arguments("llama", {"--parallel.strategy=zero1"}),
           arguments("qwen3", {"--parallel.strategy=zero2", "--model.dtype=float16"}),
           arguments("qwen2", {"--parallel.strategy=zero3", "--parallel.shard_group=node"}),
           arguments("llama", {"--parallel.offload_params=true"}),
           arguments("llama", {"--parallel.strategy=zero3", "--parallel.offload_params=true",
                               "--parallel.shard_group=node"}),
           arguments("llama", {"--parallel.strategy=zero1", "--parallel.offload_optimizer=true",
                               "--train.max_steps=101"}),
           arguments("llama", {"--parallel.offload_optimizer=true", "--train.max_steps=101"}),
           arguments("llama_full", {"--parallel.strategy=zero1"}),
           arguments("llama_full", {"--parallel.strategy=zero3"})}) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(words, " ")));
    // A node of three and one of one: slices of other sizes.
    const Outcome outcome = launch_failing(4, "none", words, 3);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  }
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  return utrain::main_of_failing_ranks(argc, argv);
}
