// Collectives over NCCL against those over MPI, to the bit. One rank runs NCCL itself; several
// ranks share a GPU over libfake_nccl.so (fake_nccl.cpp), or have one each where there are enough.
// The test starts itself again: the cases named InRanks run in every rank, those named Launch start
// them.
#include <gtest/gtest.h>

#include <optional>
#include <tuple>

#include "cuda_nccl_cases.h"
#include "needs_gpu.h"
#include "start_again.h"

namespace utrain {
namespace {

constexpr const char* kRole = "UTRAIN_NCCL_TEST_ROLE";  // what a started process does

// ---- one rank, NCCL itself ----

TEST(Alone, EveryCall) {
  UTRAIN_NEEDS_GPU();
  UTRAIN_NEEDS_NCCL();
  Device gpu;
  const auto nccl =
      connect_nccl_collectives(prepare_nccl_collectives(0, 1, gpu.backend()), nccl_unique_id());
  EXPECT_EQ(nccl->size(), 1);
  constexpr int64_t n = 5000;
  const std::vector<float> values = part<float>(0, n), poison(n, NAN);
  const Tensor x = gpu.tensor<float>(n), y = gpu.tensor<float>(n);
  gpu.write(x, values);
  nccl->all_reduce_sum(x);
  nccl->begin_all_reduce_sum(x);
  nccl->finish();
  nccl->broadcast(x, 0);
  EXPECT_TRUE(same_bits(gpu.read<float>(x), values));
  gpu.write(y, poison);
  nccl->reduce_scatter_sum(y, x);
  EXPECT_TRUE(same_bits(gpu.read<float>(y), values));
  gpu.write(y, poison);
  nccl->all_gather(y, x);
  EXPECT_TRUE(same_bits(gpu.read<float>(y), values));
  EXPECT_EQ(nccl->all_reduce_sum(0.1), 0.1);
  EXPECT_EQ(nccl->all_reduce_max(-3), -3);
  nccl->barrier();
  EXPECT_EQ(nccl->number(), 8);
}

// ---- the launcher ----

Finished start(const std::string& before, const std::string& role, const std::string& arguments) {
  return start_again(before, fmt::format("{}={}", kRole, role), arguments);
}

std::string mpirun(int ranks) {
  return fmt::format(
      "OMP_NUM_THREADS=1 mpirun --allow-run-as-root --oversubscribe --bind-to none --timeout 120 "
      "-np {} ",
      ranks);
}

std::string fake_nccl() {
  return "LD_PRELOAD=" + (own_program().parent_path() / "libfake_nccl.so").string();
}

class Launch : public testing::TestWithParam<std::tuple<int, bool>> {
 protected:
  int ranks() const { return std::get<0>(GetParam()); }
  // Of the started ranks: who sends, and whether they have a GPU each.
  std::string role(bool own) const {
    return fmt::format("{}{}", own ? "own" : "share", std::get<1>(GetParam()) ? "" : "_by_nccl");
  }
  void SetUp() override {
    UTRAIN_NEEDS_GPU();
    UTRAIN_NEEDS_NCCL();
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, Launch,
                         testing::Combine(testing::Values(2, 3, 4), testing::Bool()));

TEST_P(Launch, SharingOneGpu) {
  const Finished finished =
      start(mpirun(ranks()) + "-x " + fake_nccl(), role(false), "--gtest_filter='InRanks*'");
  EXPECT_EQ(finished.exit_code, 0) << finished.output;
}

TEST_P(Launch, OneGpuEach) {
  UTRAIN_NEEDS_GPUS(ranks());
  const Finished finished = start(mpirun(ranks()), role(true), "--gtest_filter='InRanks*'");
  EXPECT_EQ(finished.exit_code, 0) << finished.output;
}

class LaunchOnce : public testing::Test {
 protected:
  void SetUp() override {
    UTRAIN_NEEDS_GPU();
    UTRAIN_NEEDS_NCCL();
  }
};

TEST_F(LaunchOnce, AFailureNamesTheCall) {
  for (const char* call : {"ncclCommInitRank", "ncclAllGather"}) {
    const Finished finished =
        start(fmt::format("FAKE_NCCL_FAILS={} {}", call, fake_nccl()), "alone", "");
    EXPECT_EQ(finished.exit_code, 70) << finished.output;
    EXPECT_NE(
        finished.output.find(fmt::format("utrain: error: {}: fake failure: asked for (", call)),
        std::string::npos)
        << finished.output;
  }
}

TEST_F(LaunchOnce, RanksThatDoNotComeAreNotWaitedForForEver) {
  const Finished finished = start(fake_nccl(), "one_of_two", "");
  EXPECT_EQ(finished.exit_code, 70) << finished.output;
  EXPECT_NE(finished.output.find("ncclCommInitRank: rank 0 of 2 waited 1 s for the others"),
            std::string::npos)
      << finished.output;
}

int run_role(const std::string& role, int argc, char** argv) {
  try {
    if (role == "alone" || role == "one_of_two") {
      Device gpu;
      const int size = role == "alone" ? 1 : 2;
      connect_nccl_collectives(prepare_nccl_collectives(0, size, gpu.backend(), {.timeout_s = 1}),
                               nccl_unique_id());
      return 0;
    }
    World session(&argc, &argv, {.ranks_per_node = 2});
    world = &session;
    if (role.starts_with("own")) device = world->rank();
    copy_engines = !role.ends_with("_by_nccl");
    return RUN_ALL_TESTS();
  } catch (const Error& error) {
    fmt::print(stderr, "utrain: error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* role = std::getenv(utrain::kRole);
  if (role != nullptr) return utrain::run_role(role, argc, argv);
  std::string& filter = testing::GTEST_FLAG(filter);
  filter += filter.find('-') == std::string::npos ? "-InRanks*" : ":InRanks*";
  return RUN_ALL_TESTS();
}
