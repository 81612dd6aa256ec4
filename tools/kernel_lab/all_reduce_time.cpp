// Time and bandwidth of all-reduces in rank order, one GPU a rank.
//   mpirun -np RANKS all_reduce_time [nccl|mpi] [REPEATS]
// Bandwidth is that of the busiest link, as nccl-tests count it: 2 (ranks - 1) / ranks bytes /
// time. "begun" are eight calls between one begin and finish, as the buckets of a backward pass.
#include <fmt/core.h>

#include <cstdlib>
#include <cstring>

#include "backend.h"
#include "comm/mpi_collectives.h"
#include "comm/nccl_collectives.h"
#include "parallel/staged_collectives.h"

namespace {

using namespace utrain;

std::unique_ptr<Collectives> connect(const World& world, Backend& backend, bool nccl) {
  if (!nccl)
    return std::make_unique<StagedCollectives>(std::make_unique<MpiCollectives>(world), backend);
  return open_nccl_collectives(world, backend);
}

// Seconds a call: of `calls` begun together, on parts of x.
double time_of(Backend& backend, Collectives& collectives, const Tensor& x, int64_t calls,
               int64_t repeats) {
  int64_t from = 0;
  for (int64_t i = -2; i < repeats; ++i) {
    if (i == 0) {
      collectives.barrier();
      from = backend.moment();
    }
    for (int64_t part = 0; part < calls; ++part)
      collectives.begin_all_reduce_sum(x.columns(part * (x.cols / calls), x.cols / calls));
    collectives.finish();
  }
  return backend.seconds(from, backend.moment()) / static_cast<double>(repeats * calls);
}

void measure(const World& world, bool nccl, int64_t repeats) {
  constexpr int64_t kMaxElems = int64_t{128} << 20;
  const auto n_gpus = static_cast<int>(visible_gpus().size());
  const auto backend = make_cuda_backend(DType::f32, world.local_rank() % std::max(1, n_gpus));
  const auto collectives = connect(world, *backend, nccl);
  const Tensor x = make_tensor(backend->allocate(kMaxElems * 4), DType::f32, 1, kMaxElems);
  backend->zero(x);
  const double links = 2.0 * (world.size() - 1) / world.size();
  if (world.rank() == 0)
    fmt::print("{} ranks, {}, CUDA {}\n{:>12} {:>12} {:>10} {:>18}\n", world.size(),
               nccl ? "NCCL" : "mpi", cuda_versions(), "bytes", "us", "GB/s", "GB/s of 8 begun");
  for (int64_t n = 1024; n <= kMaxElems; n *= 4) {
    const Tensor part = x.columns(0, n);
    const double bytes = static_cast<double>(n) * 4.0;
    const double one = time_of(*backend, *collectives, part, 1, repeats);
    const double eight = n < 8192 ? 0.0 : 8.0 * time_of(*backend, *collectives, part, 8, repeats);
    if (world.rank() == 0)
      fmt::print("{:>12.0f} {:>12.1f} {:>10.2f} {:>18}\n", bytes, one * 1e6,
                 links * bytes / one * 1e-9,
                 eight == 0.0 ? "" : fmt::format("{:.2f}", links * bytes / eight * 1e-9));
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const World world(&argc, &argv);
    try {
      measure(world, argc < 2 || std::strcmp(argv[1], "mpi") != 0,
              argc < 3 ? 10 : std::max(1, std::atoi(argv[2])));
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
