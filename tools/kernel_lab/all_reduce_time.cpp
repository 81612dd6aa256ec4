// Time and bandwidth of all-reduces in rank order and of gathers, one GPU a rank.
//   mpirun -np RANKS all_reduce_time [nccl|kernels|mpi] [REPEATS]
// nccl: as a run does it; kernels: by NCCL alone, without copy engines. Bandwidth is that of the
// busiest link, as nccl-tests count it: 2 (ranks - 1) / ranks bytes / time, half of that for
// gathers. "begun" are eight calls between one begin and finish, as the buckets of a backward pass;
// gathers of shared tensors are those of zero3.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "comm/mpi_collectives.h"
#include "comm/nccl_collectives.h"
#include "parallel/staged_collectives.h"

namespace {

using namespace utrain;

std::unique_ptr<Collectives> connect(const World& world, Backend& backend,
                                     const std::string& over) {
  if (over == "mpi")
    return std::make_unique<StagedCollectives>(std::make_unique<MpiCollectives>(world), backend);
  return open_nccl_collectives(world, backend, {.copy_engines = over != "kernels"});
}

// Seconds a call: of `calls` begun together.
template <class Begin>
double time_of(Backend& backend, Collectives& collectives, int64_t calls, int64_t repeats,
               const Begin& begin) {
  int64_t from = 0;
  for (int64_t i = -2; i < repeats; ++i) {
    if (i == 0) {
      collectives.barrier();
      from = backend.moment();
    }
    for (int64_t call = 0; call < calls; ++call) begin(call);
    collectives.finish();
  }
  return backend.seconds(from, backend.moment()) / static_cast<double>(repeats * calls);
}

void measure(const World& world, const std::string& over, int64_t repeats) {
  constexpr int64_t kMaxElems = int64_t{128} << 20, kCalls = 8;
  const auto n_gpus = static_cast<int>(visible_gpus().size());
  const auto backend = make_cuda_backend(DType::f32, world.local_rank() % std::max(1, n_gpus));
  const auto collectives = connect(world, *backend, over);
  const int rank = world.rank(), ranks = world.size();
  const Tensor x = make_tensor(backend->allocate(kMaxElems * 4), DType::f32, 1, kMaxElems);
  const Tensor home = make_tensor(backend->allocate(kMaxElems * 4), DType::f32, 1, kMaxElems);
  std::vector<float> values(size_t{1} << 20);
  std::generate(values.begin(), values.end(),
                [random = std::minstd_rand(static_cast<unsigned>(rank) + 1)]() mutable {
                  return static_cast<float>(random()) * 1e-9f - 1.0f;
                });
  const auto fill = [&](const Tensor& tensor) {
    for (int64_t i = 0; i < kMaxElems; i += std::ssize(values))
      backend->upload(tensor.columns(i, std::ssize(values)).data, values.data(),
                      std::ssize(values) * 4);
  };
  fill(x);
  fill(home);
  collectives->share({&home, 1});
  const double links = static_cast<double>(ranks - 1) / ranks;
  if (rank == 0)
    fmt::print("{} ranks, {}, CUDA {}; GB/s\n{:>12} {:>12} {:>12} {:>12} {:>12} {:>14}\n", ranks,
               over, cuda_versions(), "bytes", "us", "all-reduce", "of 8 begun", "gather",
               "gather shared");
  for (int64_t n = 8192; n <= kMaxElems; n *= 4) {
    const auto seconds = [&](int64_t calls, const auto& begin) {
      return time_of(*backend, *collectives, calls, repeats, begin);
    };
    const auto reduce = [&](int64_t elems) {
      return
          [&, elems](int64_t i) { collectives->begin_all_reduce_sum(x.columns(i * elems, elems)); };
    };
    const auto gather = [&](const Tensor& from) {
      return [&, from](int64_t) {
        collectives->begin_all_gather(x.columns(0, n),
                                      from.columns(0, Collectives::slice_size(n, rank, ranks)));
      };
    };
    const double bytes = 4.0 * static_cast<double>(n) * links * 1e-9;
    const double one = seconds(1, reduce(n));
    const double of_eight = 2.0 * bytes / kCalls / seconds(kCalls, reduce(n / kCalls));
    const double gathered = bytes / seconds(1, gather(x)),
                 shared = bytes / seconds(1, gather(home));
    if (rank == 0)
      fmt::print("{:>12} {:>12.1f} {:>12.2f} {:>12.2f} {:>12.2f} {:>14.2f}\n", 4 * n, one * 1e6,
                 2.0 * bytes / one, of_eight, gathered, shared);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const World world(&argc, &argv);
    try {
      measure(world, argc < 2 ? "nccl" : argv[1], argc < 3 ? 10 : std::max(1, std::atoi(argv[2])));
    } catch (const SharedError& error) {
      if (world.rank() == 0) fmt::print(stderr, "all_reduce_time: error: {}\n", error.what());
      return static_cast<int>(error.code());
    } catch (const Error& error) {
      fmt::print(stderr, "all_reduce_time: error: {}\n", error.what());
      world.abort(static_cast<int>(error.code()));
    }
  } catch (const Error& error) {
    fmt::print(stderr, "all_reduce_time: error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}
