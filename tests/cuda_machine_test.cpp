// Which collectives a run on GPUs gets, and what it refuses. Runs of one rank start NCCL itself;
// the others stop before they would.
#include <filesystem>

#include "backend.h"
#include "comm/nccl_collectives.h"
#include "launch.h"
#include "needs_gpu.h"

namespace utrain {
namespace {

class CudaMachine : public testing::Test {
 protected:
  void SetUp() override {
    UTRAIN_NEEDS_GPU();
    UTRAIN_NEEDS_NCCL();
  }
  void TearDown() override {
    for (const char* name : {"LD_PRELOAD", "FAKE_NCCL_OTHER_RANK", "CUDA_VISIBLE_DEVICES"})
      if (is_set(name)) ::unsetenv(name);
  }
  void set(const char* name, const std::string& value) {
    ::setenv(name, value.c_str(), 1);
    set_.push_back(name);
  }

  Outcome start(int ranks, const std::vector<std::string>& flags) {
    write_bytes(dir_ / "input.toml", golden_input("llama", dir_ / "run"));
    std::vector<std::string> arguments = {dir_ / "input.toml", "--run.backend=cuda",
                                          "--run.overwrite=true", "--train.max_steps=3"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return launch(ranks, arguments, 120.0);
  }
  std::vector<double> losses() { return curve(read_metrics(dir_ / "run/metrics.jsonl"), "loss"); }

 private:
  bool is_set(const std::string& name) const {
    return std::find(set_.begin(), set_.end(), name) != set_.end();
  }
  TempDir dir_;
  std::vector<std::string> set_;
};

void expect_refusal(const Outcome& outcome, int exit_code, const std::string& text) {
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.text();
  ASSERT_EQ(outcome.error_lines().size(), 1u) << outcome.text();
  EXPECT_NE(outcome.error_lines()[0].find(text), std::string::npos) << outcome.text();
}

TEST_F(CudaMachine, OneRankStartsNcclOnlyWhereItIsAskedTo) {
  const Outcome plain = start(kAlone, {});
  ASSERT_EQ(plain.exit_code, 0) << plain.text();
  EXPECT_EQ(plain.out.find("NCCL"), std::string::npos) << plain.out;
  EXPECT_NE(plain.out.find("driver for CUDA 1"), std::string::npos) << plain.out;
  const std::vector<double> wanted = losses();
  const Outcome nccl = start(kAlone, {"--parallel.collectives=nccl"});
  ASSERT_EQ(nccl.exit_code, 0) << nccl.text();
  EXPECT_NE(nccl.out.find("NCCL " + nccl_version()), std::string::npos) << nccl.out;
  EXPECT_EQ(losses(), wanted);
  EXPECT_EQ(wanted.size(), 3u);
}

TEST_F(CudaMachine, TwoRanksOnOneGpuWantMpi) {
  const std::string first = visible_gpus()[0].uuid;
  set("CUDA_VISIBLE_DEVICES", first);
  for (const char* wish : {"auto", "nccl"}) {
    expect_refusal(start(2, {fmt::format("--parallel.collectives={}", wish), "--check"}), 2,
                   "parallel.collectives: ranks 0 and 1 are on the same GPU of ");
  }
  const Outcome mpi = start(2, {"--parallel.collectives=mpi", "--check"});
  EXPECT_EQ(mpi.exit_code, 0) << mpi.text();
  EXPECT_NE(mpi.out.find(", mpi)"), std::string::npos) << mpi.out;
  EXPECT_NE(mpi.out.find(fmt::format("1 x {} for 2 ranks", visible_gpus()[0].name)),
            std::string::npos)
      << mpi.out;
}

TEST_F(CudaMachine, RanksWithOtherVersionsDisagree) {
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
  set("LD_PRELOAD", (self.parent_path() / "libfake_nccl.so").string());
  set("FAKE_NCCL_OTHER_RANK", "1");
  expect_refusal(start(2, {"--parallel.collectives=mpi", "--check"}), 71,
                 "the versions of CUDA and NCCL: rank 1 on ");
}

TEST_F(CudaMachine, ACapOnMemoryIsKept) {
  EXPECT_EQ(start(kAlone, {"--run.gpu_memory_gb=2", "--check"}).exit_code, 0);
  expect_refusal(start(kAlone, {"--run.gpu_memory_gb=0.01", "--check"}), 2,
                 "run.gpu_memory_gb: 0.01 GB, of which libraries and communication hold 0.");
  const auto held = static_cast<double>(make_cuda_backend(DType::bf16)->reserve_bytes());
  expect_refusal(
      start(kAlone, {fmt::format("--run.gpu_memory_gb={:.6f}", held * 1e-9 + 1e-5), "--check"}), 2,
      "raise run.gpu_memory_gb, set parallel.offload_params = true");
}

}  // namespace
}  // namespace utrain
