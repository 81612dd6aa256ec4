// World and Collectives with 2, 3 and 4 ranks. The test starts itself under mpirun: the cases named
// InRanks run in every rank, as do those named InNodes, where two ranks are a node; those named
// Launch start them.
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <chrono>
#include <cmath>
#include <complex>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <thread>

#include "comm/mpi_collectives.h"
#include "comm/world.h"
#include "rank_values.h"
#include "shared_error.h"
#include "start_again.h"

namespace utrain {
namespace {

constexpr const char* kRole = "UTRAIN_COMM_TEST_ROLE";  // what a started process does
World* world = nullptr;                                 // of a process that is a rank

// ---- in every rank ----

// Over the ranks [first, end) of the world.
template <class T>
std::vector<T> ordered_sum(int64_t n, int first, int end) {
  std::vector<T> sum = part<T>(first, n);
  for (int r = first + 1; r < end; ++r) {
    const std::vector<T> x = part<T>(r, n);
    for (size_t i = 0; i < x.size(); ++i) sum[i] = sum[i] + x[i];
  }
  return sum;
}

template <class T>
class InRanks : public testing::Test {};
using SumTypes = testing::Types<float, double, std::complex<double>>;
TYPED_TEST_SUITE(InRanks, SumTypes);

TYPED_TEST(InRanks, SumsInRankOrder) {
  using T = TypeParam;
  const int rank = world->rank(), ranks = world->size();
  for (const int64_t window : {int64_t{1}, int64_t{999}, int64_t{4096}, int64_t{1} << 24}) {
    MpiCollectives collectives(*world, window);
    for (const int64_t n : {0, 1, 2, 1023, 1024, 1025, 3073, 10000}) {
      if (window == 1 && n > 1025) continue;  // a message for each element
      const std::vector<T> wanted = ordered_sum<T>(n, 0, ranks);
      std::vector<T> x = part<T>(rank, n);
      collectives.all_reduce_sum(view(x));
      EXPECT_TRUE(same_bits(x, wanted)) << "n " << n << " window " << window;

      x = part<T>(rank, n);
      const int64_t begin = Collectives::slice_begin(n, rank, ranks);
      std::vector<T> shard(static_cast<size_t>(Collectives::slice_size(n, rank, ranks)));
      collectives.reduce_scatter_sum(view(shard), view(x));
      EXPECT_TRUE(same_bits(shard, std::vector<T>(wanted.begin() + begin,
                                                  wanted.begin() + begin + std::ssize(shard))));
      EXPECT_TRUE(same_bits(x, part<T>(rank, n))) << "the input is kept";

      std::vector<T> whole(static_cast<size_t>(n));
      collectives.all_gather(view(whole), view(shard));
      EXPECT_TRUE(same_bits(whole, wanted)) << "n " << n << " window " << window;
    }
  }
}

TYPED_TEST(InRanks, Broadcasts) {
  MpiCollectives collectives(*world);
  for (int root = 0; root < world->size(); ++root) {
    std::vector<TypeParam> x = part<TypeParam>(world->rank(), 3000);
    collectives.broadcast(view(x), root);
    EXPECT_TRUE(same_bits(x, part<TypeParam>(root, 3000)));
  }
  EXPECT_EQ(collectives.number(), world->size());
}

TEST(InRanksOnce, ReducesScalars) {
  MpiCollectives collectives(*world);
  double sum = value(0, 5);
  for (int r = 1; r < world->size(); ++r) sum += value(r, 5);
  EXPECT_EQ(collectives.all_reduce_sum(value(world->rank(), 5)), sum);
  EXPECT_EQ(collectives.all_reduce_max(-10 - world->rank()), -10);
  const int64_t large = std::numeric_limits<int64_t>::max() - 4;
  EXPECT_EQ(collectives.all_reduce_max(large + world->rank()), large + world->size() - 1);
  collectives.barrier();
  EXPECT_EQ(collectives.number(), 4);
}

TEST(InRanksOnce, KnowTheirPlace) {
  EXPECT_EQ(world->size(), std::atoi(std::getenv("UTRAIN_COMM_TEST_RANKS")));
  EXPECT_EQ(world->local_size(), world->size());
  EXPECT_EQ(world->local_rank(), world->rank());
  EXPECT_EQ(world->node(), 0);
  EXPECT_EQ(world->n_nodes(), 1);
  EXPECT_EQ(std::ssize(world->hosts()), world->size());
  cpu_set_t cpus;  // started unbound: all ranks share the same ones
  ASSERT_EQ(sched_getaffinity(0, sizeof cpus, &cpus), 0);
  EXPECT_EQ(world->cores_per_rank(), std::max(1, CPU_COUNT(&cpus) / world->size()));
}

TEST(InRanksOnce, ExchangeTexts) {
  const int rank = world->rank();
  EXPECT_EQ(world->broadcast(fmt::format("from {}", rank)), "from 0");
  EXPECT_EQ(world->broadcast(rank == 0 ? "" : "longer"), "");
  const std::vector<std::string> texts =
      world->gather_text(std::string(static_cast<size_t>(rank) * 3, static_cast<char>('a' + rank)));
  const std::vector<double> values = world->gather(0.1 * rank);
  for (int r = 0; r < world->size(); ++r) {
    const auto i = static_cast<size_t>(r);
    EXPECT_EQ(texts[i], std::string(i * 3, static_cast<char>('a' + r)));
    EXPECT_EQ(values[i], 0.1 * r);
  }
}

TEST(InRanksOnce, LeaveTogether) {
  const int rank = world->rank(), last = world->size() - 1;
  expect_shared_error(
      ExitCode::bad_file, fmt::format("shard {}: cut short; copy it again", last), [&] {
        world->together([&] {
          if (rank == last)
            fail(ExitCode::bad_file, fmt::format("shard {}", rank), "cut short", "copy it again");
        });
      });
  // The lowest of those that fail speaks.
  expect_shared_error(ExitCode::usage, "does not fit in memory on rank 1", [&] {
    world->together([&] {
      if (rank == 1) throw std::bad_alloc();
      if (rank > 1) throw std::runtime_error("another");
    });
  });
  expect_shared_error(ExitCode::io, "run.dir: full; make room", [&] {
    world->first_rank([&] {
      EXPECT_EQ(rank, 0);
      fail(ExitCode::io, "run.dir", "full", "make room");
    });
  });
  world->together([] {});
}

// Rank 0 waits for what the last rank failed to do: the reason is told, not the wait.
TEST(InRanksOnce, MeetAndNameTheReason) {
  const int last = world->size() - 1;
  try {
    world->meet([&] {
      if (world->rank() != last) std::this_thread::sleep_for(std::chrono::milliseconds(300));
      fail(ExitCode::internal, fmt::format("rank {}", world->rank()), "failed", "look");
    });
    FAIL() << "no error";
  } catch (const SharedError& error) {
    EXPECT_EQ(std::string(error.what()), fmt::format("rank {}: failed; look", last));
  }
  world->meet([] {});
}

TEST(InRanksOnce, AgreeOrNameTheRank) {
  const int rank = world->rank(), last = world->size() - 1;
  world->agree("build", std::string(100000, 'x'));
  std::string config(5000, 'c');
  config += rank == last ? "\nlr = 0.1" : "\nlr = 0.2";
  expect_shared_error(ExitCode::disagree,
                      fmt::format("config: rank {} on {} has \"...", last, world->host()),
                      [&] { world->agree("config", config); });
  expect_shared_error(ExitCode::disagree, "lr = 0.1\", rank 0",
                      [&] { world->agree("config", config); });
  expect_shared_error(ExitCode::disagree, "rank 1 on",
                      [&] { world->agree("build", rank == 0 ? "abc" : "ab"); });
}

TEST(InNodes, KnowTheirNode) {
  const int rank = world->rank(), ranks = world->size();
  const RankGroup& node = world->node_group();
  EXPECT_EQ(world->n_nodes(), (ranks + 1) / 2);
  EXPECT_EQ(world->node(), rank / 2);
  EXPECT_EQ(node.rank(), rank % 2);
  EXPECT_EQ(node.size(), std::min(2, ranks - rank / 2 * 2));
  EXPECT_EQ(world->local_rank(), node.rank());
  EXPECT_EQ(world->local_size(), node.size());
  EXPECT_EQ(world->all_ranks().rank(), rank);
  EXPECT_EQ(world->all_ranks().size(), ranks);
  for (int root = 0; root < node.size(); ++root) {
    EXPECT_EQ(node.broadcast(fmt::format("from {}", rank), root),
              fmt::format("from {}", rank / 2 * 2 + root));
  }
}

// Calls of two groups in turn: each has its own ranks, order and numbers.
TEST(InNodes, SumBesideTheWorld) {
  constexpr int64_t n = 10000;
  const int rank = world->rank(), ranks = world->size();
  const RankGroup& group = world->node_group();
  MpiCollectives all(*world, 999), node(group, 999);
  const int first = rank / 2 * 2, end = first + group.size();
  const std::vector<float> wanted = ordered_sum<float>(n, first, end);
  ASSERT_EQ(node.rank(), group.rank());
  ASSERT_EQ(node.size(), group.size());
  for (int turn = 0; turn < 3; ++turn) {
    std::vector<float> x = part<float>(rank, n), y = x, whole(x.size());
    node.all_reduce_sum(view(x));
    EXPECT_TRUE(same_bits(x, wanted));
    all.all_reduce_sum(view(y));
    EXPECT_TRUE(same_bits(y, ordered_sum<float>(n, 0, ranks)));

    y = part<float>(rank, n);
    std::vector<float> shard(
        static_cast<size_t>(Collectives::slice_size(n, group.rank(), group.size())));
    node.reduce_scatter_sum(view(shard), view(y));
    all.barrier();
    node.all_gather(view(whole), view(shard));
    EXPECT_TRUE(same_bits(whole, wanted));

    node.broadcast(view(y), group.size() - 1);
    EXPECT_TRUE(same_bits(y, part<float>(end - 1, n)));
    EXPECT_EQ(node.all_reduce_max(rank), end - 1);
    EXPECT_EQ(node.all_reduce_sum(value(rank, 5)),
              group.size() == 1 ? value(rank, 5) : value(first, 5) + value(first + 1, 5));
  }
  EXPECT_EQ(node.number(), 18);
  EXPECT_EQ(all.number(), 6);
}

// ---- the launcher ----

Finished start(const std::string& before, const std::string& role, const std::string& arguments) {
  return start_again(before, fmt::format("{}={}", kRole, role), arguments);
}

std::string mpirun(int ranks) {
  return fmt::format(
      "UTRAIN_COMM_TEST_RANKS={0} mpirun --allow-run-as-root --oversubscribe --bind-to none "
      "--timeout 60 -np {0}",
      ranks);
}

class Launch : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Launch, testing::Values(2, 3, 4));

TEST_P(Launch, Checks) {
  const Finished finished = start(mpirun(GetParam()), "checks", "--gtest_filter='InRanks*'");
  EXPECT_EQ(finished.exit_code, 0) << finished.output;
}

TEST_P(Launch, ChecksInNodes) {
  const Finished finished = start(mpirun(GetParam()), "nodes", "--gtest_filter='InNodes*'");
  EXPECT_EQ(finished.exit_code, 0) << finished.output;
}

TEST(Launch, ExitCodeOfASharedError) {
  const Finished finished = start(mpirun(3), "leave", "");
  EXPECT_EQ(finished.exit_code, 5) << finished.output;
  EXPECT_NE(finished.output.find("utrain: error: step-9: missing; name another\n"),
            std::string::npos)
      << finished.output;
}

TEST(Launch, AbortEndsRanksThatWait) {
  EXPECT_EQ(start(mpirun(3), "abort", "").exit_code, 70);
}

TEST(Launch, SlurmWithoutPmixIsRefused) {
  const Finished alone = start("SLURM_NTASKS=4 SLURM_PROCID=0", "leave", "");
  EXPECT_EQ(alone.exit_code, 2) << alone.output;
  EXPECT_NE(alone.output.find("srun --mpi=pmix"), std::string::npos) << alone.output;
  const Finished one = start("SLURM_NTASKS=4 SLURM_PROCID=0 " + mpirun(1), "leave", "");
  EXPECT_EQ(one.exit_code, 5) << one.output;
}

// As containers do: reading the memory of another process is refused.
bool forbid_single_copy() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{4, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(Launch, ContainersThatForbidSingleCopies) {
  const Finished finished = start(mpirun(2), "container", "--gtest_filter='InRanks/0.*'");
  EXPECT_EQ(finished.exit_code, 0) << finished.output;
  EXPECT_EQ(finished.output.find("Read -1"), std::string::npos) << finished.output;
}

int run_rank(const std::string& role, int argc, char** argv) {
  if (role == "container" && !forbid_single_copy()) return 0;
  try {
    World session(&argc, &argv, {.ranks_per_node = role == "nodes" ? 2 : 0});
    world = &session;
    if (role == "checks" || role == "nodes" || role == "container") return RUN_ALL_TESTS();
    if (role == "abort") {
      if (world->rank() == 1) world->abort(70);
      world->barrier();
      world->barrier();
    }
    try {
      world->together([] {
        if (world->rank() == world->size() - 1) {
          fail(ExitCode::no_checkpoint, "step-9", "missing", "name another");
        }
      });
    } catch (const SharedError& error) {
      if (world->rank() == 0) fmt::print(stderr, "utrain: error: {}\n", error.what());
      return static_cast<int>(error.code());
    }
  } catch (const Error& error) {
    fmt::print(stderr, "utrain: error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* role = std::getenv(utrain::kRole);
  if (role != nullptr) return utrain::run_rank(role, argc, argv);
  std::string& filter = testing::GTEST_FLAG(filter);
  filter += filter.find('-') == std::string::npos ? "-InRanks*:InNodes*" : ":InRanks*:InNodes*";
  return RUN_ALL_TESTS();
}
