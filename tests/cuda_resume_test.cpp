// As resume_test.cpp, on a GPU: steps run on while what they left is copied and written, and a run
// that goes on has the bits of one that was not interrupted. Ranks share a GPU.
#include "needs_gpu.h"
#include "resume_case.h"

namespace utrain {
namespace {

struct Variant {
  const char* name;
  const char* golden;
  int ranks;
  Words more;
};
void PrintTo(const Variant& v, std::ostream* out) {
  *out << v.name;
}

class CudaResume : public ResumeCase, public testing::WithParamInterface<Variant> {};

TEST_P(CudaResume, EqualsTheUninterruptedRun) {
  UTRAIN_NEEDS_GPU();
  const Variant& v = GetParam();
  use(v.golden);
  Words more = {"--run.backend=cuda", "--parallel.collectives=mpi"};
  more.insert(more.end(), v.more.begin(), v.more.end());
  expect_done("whole", v.ranks, more);
  Words without = more;
  without.push_back("--checkpoint.every=0");
  expect_done("without", v.ranks, without);
  expect_same_run("without", "whole");  // no step has read what a copy still needed, or written it
  for (const int64_t step : {5, 10}) {
    ASSERT_NO_FATAL_FAILURE(interrupt("whole", step, "parts"));
    expect_done("parts", v.ranks, more);
    expect_same_run("whole", "parts");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, CudaResume,
    testing::Values(
        Variant{"Float32", "llama", 1, {"--model.dtype=float32"}},
        Variant{"Bfloat16", "llama", 2, {"--model.dtype=bfloat16", "--lora.dropout=0.1"}},
        Variant{"Float16", "llama", 1, {"--model.dtype=float16"}},
        Variant{"Zero3", "llama", 2, {"--model.dtype=float32", "--parallel.strategy=zero3"}},
        Variant{"Offloaded",
                "llama",
                2,
                {"--model.dtype=bfloat16", "--parallel.strategy=zero2",
                 "--parallel.offload_optimizer=true", "--train.recompute=offload"}},
        Variant{"Full", "llama_full", 2, {"--model.dtype=bfloat16", "--parallel.strategy=zero1"}}),
    [](const auto& info) { return info.param.name; });

class CudaStop : public ResumeCase {};

TEST_F(CudaStop, EveryStepHasItsCheckpoint) {
  UTRAIN_NEEDS_GPU();
  const Words more = {"--run.backend=cuda", "--model.dtype=bfloat16", "--checkpoint.every=1",
                      "--checkpoint.keep=100"};
  expect_done("whole", 1, more);
  EXPECT_EQ(names_in(at("whole") + "/checkpoints").size(), 13u) << "12 and LATEST";
  interrupt("whole", 7, "parts");
  expect_done("parts", 1, more);
  expect_same_run("whole", "parts");
}

}  // namespace
}  // namespace utrain
