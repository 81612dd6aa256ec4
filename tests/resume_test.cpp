// A run that goes on from a checkpoint is the run that was never interrupted: to the bit on as many
// ranks, within rounding on any others, under any strategy, with no row lost or repeated.
#include "app/checkpoints.h"
#include "resume_case.h"
#include "tolerance.h"

namespace utrain {
namespace {

struct Variant {
  const char* name;
  const char* golden;
  int ranks;
  int64_t step;  // of the checkpoint
  Words more = {};
};
void PrintTo(const Variant& v, std::ostream* out) {
  *out << v.name;
}

class ResumeToTheBit : public ResumeCase, public testing::WithParamInterface<Variant> {};

TEST_P(ResumeToTheBit, EqualsTheUninterruptedRun) {
  const Variant& v = GetParam();
  use(v.golden);
  expect_done("whole", v.ranks, v.more);
  interrupt("whole", v.step, "parts");
  const Outcome outcome = expect_done("parts", v.ranks, v.more);
  EXPECT_NE(outcome.out.find(fmt::format("continues  from step {} of {}\n", v.step,
                                         checkpoint("parts", v.step))),
            std::string::npos)
      << outcome.text();
  expect_same_run("whole", "parts");
  const Json whole = read_json(at("whole") + "/summary.json"),
             parts = read_json(at("parts") + "/summary.json");
  for (const char* key : {"steps", "tokens", "target_tokens", "first_loss", "last_loss",
                          "first_eval_loss", "last_eval_loss", "skipped_steps", "overflowed_steps"})
    EXPECT_EQ(to_text(*whole.find(key)), to_text(*parts.find(key))) << key;
  EXPECT_EQ(parts.find("restarts")->as_int64(), 1);
  EXPECT_EQ(parts.find("checkpoints")->find("written")->as_int64(),
            whole.find("checkpoints")->find("written")->as_int64());
}

// 3 steps an epoch: 5 and 10 lie inside one, 6 at the end of one, 8 has an evaluation.
INSTANTIATE_TEST_SUITE_P(
    Cases, ResumeToTheBit,
    testing::Values(
        Variant{"Alone", "llama", kAlone, 5}, Variant{"Ddp", "llama", 2, 5, {"--lora.dropout=0.1"}},
        Variant{"AtTheEndOfAnEpoch", "qwen3", 2, 6, {"--checkpoint.every=6"}},
        Variant{
            "AfterAnEvaluation", "llama", 2, 8, {"--checkpoint.every=8", "--checkpoint.keep=2"}},
        Variant{"Zero1", "llama", 3, 5, {"--parallel.strategy=zero1", "--lora.dropout=0.1"}},
        Variant{"Zero2", "llama", 2, 10, {"--parallel.strategy=zero2"}},
        Variant{"Zero3", "llama", 3, 5, {"--parallel.strategy=zero3"}},
        Variant{"Offloaded",
                "llama",
                2,
                5,
                {"--parallel.strategy=zero2", "--parallel.offload_optimizer=true"}},
        Variant{"OffloadedDdp", "llama", 2, 5, {"--parallel.offload_optimizer=true"}},
        Variant{"Full", "llama_full", 2, 5, {"--parallel.strategy=zero3"}},
        Variant{"FullBfloat16",
                "qwen2_full",
                2,
                5,
                {"--model.dtype=bfloat16", "--parallel.strategy=zero1"}},
        Variant{"Float16", "llama", 2, 5, {"--model.dtype=float16"}}),
    [](const auto& info) { return info.param.name; });

class Resume : public ResumeCase {};

// Steps, rows and tokens exactly; losses and norms within rounding.
void expect_same_curve(const std::vector<Json>& a, const std::vector<Json>& b) {
  for (const char* key : {"step", "epoch", "tokens", "target_tokens", "lr"})
    EXPECT_EQ(curve(a, key), curve(b, key)) << key;
  for (const char* key : {"loss", "grad_norm", "eval_loss"}) {
    const std::vector<double> x = curve(a, key), y = curve(b, key);
    ASSERT_EQ(x.size(), y.size()) << key;
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_NEAR(x[i], y[i], tolerance::kInvariance * std::fabs(y[i])) << key << " " << i;
  }
}

TEST_F(Resume, OnOtherRanksAndStrategies) {
  const Words often = {"--checkpoint.every=2"};
  expect_done("whole", 4, often);
  struct Leg {
    int ranks;
    int64_t from;
    Words more;
  };
  const std::vector<Leg> legs = {
      {2, 2, {}},
      {3, 4, {"--parallel.strategy=zero3", "--train.micro_batch_size=3"}},
      {1, 6, {"--parallel.strategy=zero2", "--train.recompute=block"}},
      {4, 8, {"--parallel.strategy=zero1", "--parallel.offload_optimizer=true"}}};
  std::string before = "whole";
  for (const Leg& leg : legs) {
    SCOPED_TRACE(fmt::format("{} ranks from step {}", leg.ranks, leg.from));
    ASSERT_NO_FATAL_FAILURE(interrupt(before, leg.from, "parts"));
    Words more = leg.more;
    more.push_back(often[0]);
    const Outcome outcome = expect_done("parts", leg.ranks, more);
    EXPECT_NE(outcome.out.find("equal to rounding, not to the bit"), std::string::npos)
        << outcome.text();
    expect_same_curve(metrics("parts"), metrics("whole"));
    before = "parts";
  }
  EXPECT_EQ(read_json(at("parts") + "/summary.json").find("restarts")->as_int64(), 4);
}

TEST_F(Resume, CheckpointsChangeNoNumber) {
  expect_done("with", 2);
  expect_done("without", 2, {"--checkpoint.every=0"});
  EXPECT_FALSE(std::filesystem::exists(at("without") + "/checkpoints"));
  expect_same_run("with", "without");
}

TEST_F(Resume, ToldOfAreLongWaitsForCheckpointsAlone) {
  EXPECT_FALSE(is_long_wait(0.04, 0.01));
  EXPECT_FALSE(is_long_wait(2.0, 100.0));
  EXPECT_TRUE(is_long_wait(2.0, 10.0));
  const Outcome outcome = expect_done("often", 2, {"--checkpoint.every=1"});
  const size_t told = outcome.err.find("waited ");
  if (told != std::string::npos) {  // where the disk is slow indeed
    EXPECT_GE(std::stod(outcome.err.substr(told + 7)), 0.5) << outcome.text();
  }
}

TEST_F(Resume, FromAPathIntoAnotherDirectory) {
  expect_done("whole", 2);
  expect_done("next", 2, {"--checkpoint.resume=" + checkpoint("whole", 5)});
  EXPECT_EQ(curve(metrics("next"), "step").front(), 6.0);
  EXPECT_EQ(curve(metrics("next"), "loss").back(), curve(metrics("whole"), "loss").back());
  // From there on it has checkpoints of its own: the other one would lose them.
  interrupt("next", 10, "next");
  const Outcome other =
      expect_code(2, "next", 2, {"--checkpoint.resume=" + checkpoint("whole", 5)});
  EXPECT_NE(other.text().find("holds checkpoints of its own"), std::string::npos) << other.text();
  expect_done("next", 2);
}

TEST_F(Resume, AnOlderOneByNamePassesOverTheNewer) {
  expect_done("whole", 2);
  interrupt("whole", 10, "parts");
  const Outcome outcome =
      expect_done("parts", 2, {"--checkpoint.resume=" + checkpoint("parts", 5)});
  EXPECT_NE(outcome.err.find("unused-step-00000010"), std::string::npos) << outcome.text();
  expect_same_run("whole", "parts");
}

TEST_F(Resume, EveryCheckpointHasAnAdapterToStartFrom) {
  expect_done("whole", 2);
  expect_done("next", 1,
              {"--lora.init_from=" + checkpoint("whole", 10) + "/adapter", "--train.lr=0",
               "--train.max_steps=1", "--checkpoint.every=0"});
  expect_code(0, "next", 1,
              {"--lora.init_from=" + checkpoint("whole", 10) + "/adapter", "--train.lr=0",
               "--train.max_steps=3", "--checkpoint.every=0", "--run.overwrite=true"});
  EXPECT_LT(curve(metrics("next"), "eval_loss").back(), curve(metrics("whole"), "eval_loss")[0]);
}

}  // namespace
}  // namespace utrain
