// Replicas on a GPU that four ranks share: parameters wider than what is computed with.
#include "failing_ranks.h"
#include "needs_gpu.h"

namespace utrain {
namespace {

TEST(CudaReplicas, AFlippedBitIsFound) {
  UTRAIN_NEEDS_GPU();
  struct Case {
    std::string strategy;
    ReplicaKind kind;
    int step;
  };
  const TempDir dir;
  int n_runs = 0;
  for (const Case& c : std::vector<Case>{{"ddp", ReplicaKind::base, 3},
                                         {"ddp", ReplicaKind::values, 10},
                                         {"ddp", ReplicaKind::parameters, 3},
                                         {"ddp", ReplicaKind::moments, 8},
                                         {"zero2", ReplicaKind::values, 10},
                                         {"zero3", ReplicaKind::base, 3}}) {
    const std::string name = kReplicaNames[static_cast<size_t>(c.kind)];
    SCOPED_TRACE(fmt::format("{} of {}", name, c.strategy));
    const std::string run_dir = dir / fmt::format("run{}", n_runs++);
    write_bytes(run_dir + ".toml", golden_input("llama", run_dir));
    const Outcome outcome =
        launch_failing(4, memory_fault(c.kind, 2, c.step),
                       {run_dir + ".toml", "--run.backend=cuda", "--parallel.collectives=mpi",
                        "--model.dtype=bfloat16", "--parallel.strategy=" + c.strategy});
    EXPECT_EQ(outcome.exit_code, 71) << outcome.text();
    EXPECT_NE(outcome.err.find(fmt::format("the {} of rank 2 on ", name)), std::string::npos)
        << outcome.text();
  }
}

TEST(CudaReplicas, NothingIsFoundWhereAllIsWell) {
  UTRAIN_NEEDS_GPU();
  const TempDir dir;
  for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"}) {
    const std::string run_dir = dir / strategy;
    write_bytes(run_dir + ".toml", golden_input("llama", run_dir));
    const Outcome outcome =
        launch_failing(4, "none",
                       {run_dir + ".toml", "--run.backend=cuda", "--parallel.collectives=mpi",
                        "--train.max_steps=101", fmt::format("--parallel.strategy={}", strategy)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  }
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  return utrain::main_of_failing_ranks(argc, argv);
}
