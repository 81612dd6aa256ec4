// What ranks do with collectives over NCCL, against those over MPI, to the bit: cuda_nccl_test starts
// them.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "comm/mpi_collectives.h"
#include "comm/nccl_collectives.h"
#include "device_tensors.h"
#include "rank_values.h"

namespace utrain {

inline World* world = nullptr;  // of a process that is a rank
inline int device = 0;
inline bool copy_engines = true;  // may send

struct Device : DeviceTensors {
  Device() : DeviceTensors(device) {}
};

inline std::unique_ptr<Collectives> connect(Backend& backend, NcclOptions options = {}) {
  options.copy_engines = copy_engines;
  return open_nccl_collectives(*world, backend, options);
}

// ---- in every rank ----

// Every call on n elements against MPI, in a group of ranks.
template <class T>
void expect_same_as_mpi(Device& gpu, Collectives& nccl, const RankGroup& group, int64_t n,
                        int64_t offset) {
  SCOPED_TRACE(fmt::format("n {} offset {} {}", n, offset, name_of(dtype_of<T>)));
  MpiCollectives mpi(group);
  const int rank = nccl.rank(), ranks = nccl.size();
  const std::vector<T> own = part<T>(rank, n);
  std::vector<T> sum = own;
  mpi.all_reduce_sum(view(sum));
  const std::vector<T> sum_slice = slice_of(sum, rank, ranks);

  const Tensor x = gpu.tensor<T>(n, offset), whole = gpu.tensor<T>(n, offset);
  const Tensor shard = gpu.tensor<T>(std::ssize(sum_slice), offset);
  const std::vector<T> poison(own.size(), kPoison<T>), shard_poison(sum_slice.size(), kPoison<T>);
  gpu.write(x, own);
  nccl.all_reduce_sum(x);
  EXPECT_TRUE(same_bits(gpu.read<T>(x), sum));

  gpu.write(x, own);
  gpu.write(shard, shard_poison);
  nccl.reduce_scatter_sum(shard, x);
  EXPECT_TRUE(same_bits(gpu.read<T>(shard), sum_slice));
  EXPECT_TRUE(same_bits(gpu.read<T>(x), own)) << "the input is kept";
  const Tensor own_slice =
      x.columns(Collectives::slice_begin(n, rank, ranks), std::ssize(sum_slice));
  nccl.reduce_scatter_sum(own_slice, x);
  EXPECT_TRUE(same_bits(gpu.read<T>(own_slice), sum_slice)) << "in place";

  gpu.write(whole, poison);
  nccl.all_gather(whole, shard);
  EXPECT_TRUE(same_bits(gpu.read<T>(whole), sum));
  gpu.write(whole, poison);
  const Tensor place = whole.columns(Collectives::slice_begin(n, rank, ranks), shard.cols);
  gpu.write(place, sum_slice);
  nccl.all_gather(whole, place);
  EXPECT_TRUE(same_bits(gpu.read<T>(whole), sum)) << "in place";

  for (int root = 0; root < ranks; ++root) {
    gpu.write(x, own);
    nccl.broadcast(x, root);
    EXPECT_TRUE(same_bits(gpu.read<T>(x), part<T>(root, n))) << "root " << root;
  }
  EXPECT_EQ(nccl.number(), 5 + ranks);
}

TEST(InRanks, SumsInRankOrder) {
  Device gpu;
  for (const int64_t n : {0, 1, 1023, 1024, 1025, 3073, 24576, 100003}) {
    const auto nccl = connect(gpu.backend(), {.scratch_bytes = 1 << 20});
    expect_same_as_mpi<float>(gpu, *nccl, world->all_ranks(), n, 0);
  }
  for (const int64_t n : {1025, 12288, 100003}) {
    const auto nccl = connect(gpu.backend(), {.scratch_bytes = 1 << 20});
    expect_same_as_mpi<double>(gpu, *nccl, world->all_ranks(), n, 1);
  }
}

TEST(InRanks, SumsInWindowsAndFromAnyAddress) {
  Device gpu;
  for (const int64_t n : {1025, 5000, 24576, 100003}) {
    const auto nccl = connect(gpu.backend(), {.scratch_bytes = n > 5000 ? 30000 : 1});
    expect_same_as_mpi<float>(gpu, *nccl, world->all_ranks(), n, n % 4);
  }
  const auto nccl = connect(gpu.backend(), {.scratch_bytes = 1});
  expect_same_as_mpi<double>(gpu, *nccl, world->all_ranks(), 2049, 1);
}

TEST(InRanks, MovesAnyDType) {
  Device gpu;
  const auto nccl = connect(gpu.backend(), {.scratch_bytes = 1 << 20});
  constexpr int64_t n = 5000;
  const auto half = [](int rank) {
    std::vector<uint16_t> bits(n);
    for (int64_t i = 0; i < n; ++i)
      bits[static_cast<size_t>(i)] = static_cast<uint16_t>(i * 31 + rank * 7);
    return bits;
  };
  Tensor x = gpu.tensor<float>(n);
  x.dtype = DType::bf16;
  gpu.write(x, half(world->rank()));
  nccl->broadcast(x, world->size() - 1);
  EXPECT_TRUE(same_bits(gpu.read<uint16_t>(x), half(world->size() - 1)));
}

// What the backend does before begin and after finish keeps its place, though none of it waits.
TEST(InRanks, TheBackendComputesInBetween) {
  Device gpu;
  const auto nccl = connect(gpu.backend(), {.scratch_bytes = 1 << 20});
  MpiCollectives mpi(*world);
  const int rank = world->rank();
  constexpr int64_t n_a = 30000, n_b = 5001, n_work = int64_t{64} << 20;
  const Tensor a = gpu.tensor<float>(n_a), b = gpu.tensor<float>(n_b);
  const Tensor work = gpu.tensor<float>(n_work);
  const std::vector<float> own_a = part<float>(rank, n_a), own_b = part<float>(rank + 9, n_b);
  std::vector<float> sum_a = own_a, sum_b = own_b;
  mpi.all_reduce_sum(view(sum_a));
  mpi.all_reduce_sum(view(sum_b));
  mpi.all_reduce_sum(view(sum_a));  // a is summed twice
  const std::vector<float> poison(n_a, NAN);
  for (int turn = 0; turn < 3; ++turn) {
    gpu.write(a, poison);
    for (int i = 0; i < 40; ++i) gpu.backend().zero(work);  // some milliseconds
    gpu.write(a, own_a);
    nccl->begin_all_reduce_sum(a);
    for (int i = 0; i < 20; ++i) gpu.backend().zero(work);
    gpu.write(b, own_b);
    nccl->begin_all_reduce_sum(b);
    EXPECT_EQ(nccl->all_reduce_max(rank), world->size() - 1);  // keeps its place
    nccl->begin_all_reduce_sum(a);
    nccl->finish();
    EXPECT_TRUE(same_bits(gpu.read<float>(b), sum_b)) << "turn " << turn;
    EXPECT_TRUE(same_bits(gpu.read<float>(a), sum_a)) << "turn " << turn;
  }
  nccl->finish();  // nothing is under way
  EXPECT_EQ(nccl->number(), 12);
}

// More calls than are kept in mind, with waits for some, new and long done.
TEST(InRanks, WaitsForOneCall) {
  Device gpu;
  const auto nccl = connect(gpu.backend(), {.scratch_bytes = 1 << 20});
  MpiCollectives mpi(*world);
  const int rank = world->rank(), ranks = world->size();
  constexpr int64_t n = 3000, n_tensors = 300;
  std::vector<float> sum = part<float>(rank, n);
  mpi.all_reduce_sum(view(sum));
  const std::vector<float> shard_sum = slice_of(sum, rank, ranks);
  const Tensor x = gpu.tensor<float>(n), shard = gpu.tensor<float>(std::ssize(shard_sum));
  const Tensor whole = gpu.tensor<float>(n);
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < n_tensors; ++i) {
    tensors.push_back(gpu.tensor<float>(n));
    gpu.write(tensors.back(), part<float>(rank, n));
  }
  gpu.write(x, part<float>(rank, n));
  nccl->begin_reduce_scatter_sum(shard, x);
  nccl->begin_all_gather(whole, shard);
  const int64_t gathered = nccl->number();
  for (const Tensor& tensor : tensors) nccl->begin_all_reduce_sum(tensor);
  nccl->wait(gathered);
  EXPECT_TRUE(same_bits(gpu.read<float>(shard), shard_sum));
  EXPECT_TRUE(same_bits(gpu.read<float>(whole), sum));
  nccl->wait(nccl->number() - 1);
  EXPECT_TRUE(same_bits(gpu.read<float>(tensors[n_tensors - 2]), sum));
  nccl->wait(gathered);
  nccl->finish();
  for (const Tensor& tensor : tensors) ASSERT_TRUE(same_bits(gpu.read<float>(tensor), sum));
}

TEST(InRanks, ReducesScalars) {
  Device gpu;
  const auto nccl = connect(gpu.backend(), {.scratch_bytes = 1 << 20});
  MpiCollectives mpi(*world);
  const double own = part<double>(world->rank(), 6)[5];
  EXPECT_EQ(nccl->all_reduce_sum(own), mpi.all_reduce_sum(own));
  EXPECT_EQ(nccl->all_reduce_max(-10 - world->rank()), -10);
  const int64_t large = std::numeric_limits<int64_t>::max() - 4;
  EXPECT_EQ(nccl->all_reduce_max(large + world->rank()), large + world->size() - 1);
  nccl->barrier();
  EXPECT_EQ(nccl->number(), 4);
  EXPECT_GE(nccl->reserve_bytes(), (1 << 20) * 9 / 10);
}

// As zero3 gathers what is trained: read where it lies, written, and read again.
TEST(InRanks, GatherSharedShards) {
  Device gpu;
  const auto nccl = connect(gpu.backend(), {.scratch_bytes = 30000});
  const int rank = world->rank(), ranks = world->size();
  constexpr int64_t n = 100003, n_work = int64_t{16} << 20;
  constexpr int n_turns = 4;
  const Tensor shard = gpu.tensor<float>(Collectives::slice_size(n, rank, ranks));
  const Tensor whole = gpu.tensor<float>(n), sum = gpu.tensor<float>(n);
  const Tensor work = gpu.tensor<float>(n_work), staged = gpu.tensor<float>(shard.cols);
  gpu.write(shard, slice_of(part<float>(40, n), rank, ranks));
  nccl->share({&shard, 1});
  for (int turn = 0; turn < n_turns; ++turn) {
    gpu.backend().zero(whole);
    gpu.write(staged, slice_of(part<float>(41 + turn, n), rank, ranks));
    nccl->all_gather(whole, shard);
    EXPECT_TRUE(same_bits(gpu.read<float>(whole), part<float>(40 + turn, n))) << "turn " << turn;
    gpu.backend().zero(sum);
    nccl->all_reduce_sum(sum);  // after that all have gathered
    for (int i = 0; i < 10 * ((rank + turn) % ranks); ++i)
      gpu.backend().zero(work);  // some are late
    gpu.backend().convert(shard, staged);
    nccl->shared_changed();
  }
}

// ---- in every rank, two of which are a node ----

inline std::unique_ptr<Collectives> connect_node(Backend& backend, const Collectives& beside) {
  return open_nccl_collectives(*world, world->node_group(), backend,
                               {.beside = &beside, .copy_engines = copy_engines});
}

TEST(InRanks, OfANodeSumInRankOrder) {
  Device gpu;
  const auto all = connect(gpu.backend(), {.scratch_bytes = 30000});
  for (const int64_t n : {0, 1025, 24576, 100003}) {
    const auto node = connect_node(gpu.backend(), *all);
    expect_same_as_mpi<float>(gpu, *node, world->node_group(), n, n % 4);
  }
}

// As a step makes them: gathers in the node and sums over all, many under way, waited for later.
TEST(InRanks, OfANodeKeepTheirPlaceBesideThoseOfAll) {
  Device gpu;
  auto all = connect(gpu.backend(), {.scratch_bytes = 1 << 20});
  const auto node = connect_node(gpu.backend(), *all);
  MpiCollectives mpi(*world);
  constexpr int64_t n = 30000, n_work = int64_t{16} << 20;
  constexpr int n_layers = 8;
  const int rank = world->rank(), ranks = world->size(), first = rank / 2 * 2;
  const std::vector<float> own = part<float>(rank, n), weights = part<float>(50 + first, n);
  std::vector<float> sum = own;
  mpi.all_reduce_sum(view(sum));
  const std::vector<float> sum_slice = slice_of(sum, rank, ranks);
  const std::vector<float> weights_slice = slice_of(weights, node->rank(), node->size());

  const Tensor work = gpu.tensor<float>(n_work), shard = gpu.tensor<float>(std::ssize(sum_slice));
  const Tensor home = gpu.tensor<float>(std::ssize(weights_slice));
  gpu.write(home, weights_slice);
  std::vector<Tensor> gathered, summed;
  for (int l = 0; l < n_layers; ++l) {
    gathered.push_back(gpu.tensor<float>(n));
    summed.push_back(gpu.tensor<float>(n));
    gpu.write(summed.back(), own);
  }
  for (int turn = 0; turn < 3; ++turn) {
    for (int l = 0; l < n_layers; ++l) {
      const auto i = static_cast<size_t>(l);
      gpu.backend().zero(gathered[i]);
      node->begin_all_gather(gathered[i], home);
      const int64_t number = node->number();
      gpu.backend().zero(work);
      all->begin_reduce_scatter_sum(shard, summed[i]);
      if (l % 3 == 0) node->wait(number);
    }
    EXPECT_EQ(all->all_reduce_max(rank), ranks - 1);
    all->finish();
    EXPECT_TRUE(same_bits(gpu.read<float>(shard), sum_slice)) << "turn " << turn;
    node->finish();
    for (const Tensor& unit : gathered)
      ASSERT_TRUE(same_bits(gpu.read<float>(unit), weights)) << "turn " << turn;
  }
  all.reset();  // either may go first
  gpu.backend().zero(gathered[0]);
  node->all_gather(gathered[0], home);
  EXPECT_TRUE(same_bits(gpu.read<float>(gathered[0]), weights));
}

}  // namespace utrain
