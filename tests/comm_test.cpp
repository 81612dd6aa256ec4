// World and Collectives with one rank, and how elements are cut into slices. More ranks:
// comm_ranks_test.cpp.
#include <gtest/gtest.h>
#include <sched.h>

#include <memory>
#include <new>
#include <numeric>

#include "comm/mpi_collectives.h"
#include "comm/world.h"
#include "shared_error.h"

namespace utrain {
namespace {

// MPI starts once in a process.
class Comm : public testing::Test {
 protected:
  static void SetUpTestSuite() { world = std::make_unique<World>(nullptr, nullptr); }
  static void TearDownTestSuite() { world.reset(); }
  inline static std::unique_ptr<World> world;
};

TEST_F(Comm, OneRankIsAWorld) {
  EXPECT_EQ(world->rank(), 0);
  EXPECT_EQ(world->size(), 1);
  EXPECT_EQ(world->local_rank(), 0);
  EXPECT_EQ(world->local_size(), 1);
  EXPECT_EQ(world->node(), 0);
  EXPECT_EQ(world->n_nodes(), 1);
  EXPECT_FALSE(world->host().empty());
  cpu_set_t cpus;
  ASSERT_EQ(sched_getaffinity(0, sizeof cpus, &cpus), 0);
  EXPECT_EQ(world->cores_per_rank(), CPU_COUNT(&cpus));
  EXPECT_EQ(world->broadcast("text"), "text");
  EXPECT_EQ(world->gather_text(""), std::vector<std::string>{""});
  EXPECT_EQ(world->gather(2.5), std::vector<double>{2.5});
  const double before = world->wtime();
  EXPECT_LE(before, world->wtime());
}

TEST_F(Comm, FailuresAreShared) {
  int calls = 0;
  world->together([&] { ++calls; });
  world->first_rank([&] { ++calls; });
  world->agree("build", "abc");
  EXPECT_EQ(calls, 2);
  expect_shared_error(ExitCode::bad_file, "model: bad; mend it", [] {
    world->together([] { fail(ExitCode::bad_file, "model", "bad", "mend it"); });
  });
  expect_shared_error(ExitCode::usage, "does not fit in memory",
                      [] { world->first_rank([] { throw std::bad_alloc(); }); });
  expect_shared_error(ExitCode::internal, "surprise",
                      [] { world->together([] { throw std::runtime_error("surprise"); }); });
}

TEST_F(Comm, OneRankReducesToItself) {
  MpiCollectives collectives(*world);
  std::vector<double> x(1500);
  std::iota(x.begin(), x.end(), 0.0);
  const std::vector<double> before = x;
  const Tensor whole = make_tensor(x.data(), DType::f64, 1, 1500);
  std::vector<double> shard(1500, -1.0);
  collectives.all_reduce_sum(whole);
  collectives.broadcast(whole, 0);
  collectives.reduce_scatter_sum(make_tensor(shard.data(), DType::f64, 1, 1500), whole);
  EXPECT_EQ(x, before);
  EXPECT_EQ(shard, before);
  std::fill(x.begin(), x.end(), 0.0);
  collectives.all_gather(whole, make_tensor(shard.data(), DType::f64, 1, 1500));
  EXPECT_EQ(x, before);
  EXPECT_EQ(collectives.all_reduce_sum(0.1), 0.1);
  EXPECT_EQ(collectives.all_reduce_max(-7), -7);
  collectives.barrier();
  EXPECT_EQ(collectives.number(), 7);
}

TEST_F(Comm, MistakesAreFound) {
  MpiCollectives collectives(*world);
  std::vector<float> x(16);
  Tensor strided = make_tensor(x.data(), DType::f32, 2, 4);
  strided.ld = 8;
  EXPECT_THROW(collectives.all_reduce_sum(strided), Error);
  const Tensor whole = make_tensor(x.data(), DType::f32, 1, 16);
  EXPECT_THROW(collectives.reduce_scatter_sum(whole.columns(0, 15), whole), Error);
  EXPECT_THROW(collectives.broadcast(whole, 1), Error);
  EXPECT_THROW(collectives.all_reduce_sum(make_tensor(x.data(), DType::bf16, 1, 16)), Error);
}

TEST(MpiVersion, IsOneLine) {
  EXPECT_GT(World::mpi_version().size(), 3u);
  EXPECT_EQ(World::mpi_version().find('\n'), std::string::npos);
}

TEST(Slices, CoverEvenlyInWholeBlocks) {
  const int64_t sizes[] = {0, 1, 1023, 1024, 1025, 2048, 5000, 10000, int64_t{1} << 40};
  for (const int64_t n : sizes) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      int64_t shortest = n, longest = 0;
      EXPECT_EQ(Collectives::slice_begin(n, 0, ranks), 0);
      EXPECT_EQ(Collectives::slice_begin(n, ranks, ranks), n);
      for (int r = 0; r < ranks; ++r) {
        const int64_t begin = Collectives::slice_begin(n, r, ranks);
        const int64_t size = Collectives::slice_size(n, r, ranks);
        EXPECT_TRUE(begin % 1024 == 0 || begin == n) << n << " " << r << " " << ranks;
        EXPECT_GE(size, 0);
        shortest = std::min(shortest, size);
        longest = std::max(longest, size);
      }
      // One block more, and the last block of n may be short.
      EXPECT_LT(longest - shortest, 2048) << n << " " << ranks;
    }
  }
}

}  // namespace
}  // namespace utrain
