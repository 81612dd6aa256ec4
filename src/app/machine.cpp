#include "app/machine.h"

#include <algorithm>
#include <cstdlib>
#include <set>

#include "comm/mpi_collectives.h"
#include "core/host_memory.h"
#include "parallel/staged_collectives.h"

namespace utrain {

namespace {

// OMP_NUM_THREADS where the user set it, else this rank's share of the node's cores.
int threads_of_rank(const World& world) {
  const char* given = std::getenv("OMP_NUM_THREADS");
  const int asked = given != nullptr ? std::atoi(given) : 0;
  return asked > 0 ? asked : world.cores_per_rank();
}

bool wants_cuda(const std::string& backend) {
  return backend == "cuda" || (backend == "auto" && !visible_gpus().empty());
}

// The part that a rank may plan for; the rest is left to the system, the driver and libraries.
int64_t share_of(int64_t bytes, int ranks) {
  return static_cast<int64_t>(0.9 * static_cast<double>(bytes)) / ranks;
}

Machine open_cpu(const Config& config, const World& world) {
  Machine machine;
  const int threads = threads_of_rank(world);
  int64_t budget = 0;
  world.together([&] {
    if (config.model.dtype != "auto" && config.model.dtype != "float32") {
      fail(ExitCode::usage, "model.dtype",
           fmt::format("\"{}\" is not in this version on the CPU, which computes in float32",
                       config.model.dtype),
           "set \"auto\" or \"float32\", or run on GPUs");
    }
    if (config.parallel.collectives == "nccl") {
      fail(ExitCode::usage, "parallel.collectives", "\"nccl\" is not available on the CPU",
           "set \"auto\" or \"mpi\"");
    }
    set_cpu_threads(threads);
    machine.backend = make_cpu_backend(DType::f32);
    budget = share_of(available_memory(), world.local_size());
  });
  machine.collectives = std::make_unique<MpiCollectives>(world);
  machine.memory_budget = -machine.collectives->all_reduce_max(-budget);
  machine.description = fmt::format("cpu, {} thread{} a rank", threads, threads == 1 ? "" : "s");
  return machine;
}

DType dtype_on_gpu(const std::string& dtype) {
  if (dtype == "float32") return DType::f32;
  if (dtype == "float16") return DType::f16;
  return DType::bf16;
}

Machine open_cuda(const Config& config, const World& world) {
  Machine machine;
  GpuInfo gpu;
  int device = 0;
  world.together([&] {
    const std::vector<GpuInfo> gpus = visible_gpus();
    set_cpu_threads(threads_of_rank(world));  // of loading
    if (!gpus.empty()) device = world.local_rank() % static_cast<int>(gpus.size());
    machine.backend =
        make_cuda_backend(dtype_on_gpu(config.model.dtype), device);  // tells what is missing
    gpu = gpus.at(static_cast<size_t>(device));
  });
  // Ranks that see one GPU each may still see the same one.
  const std::vector<std::string> places = world.gather_text(world.host() + " " + gpu.uuid);
  const auto sharing = static_cast<int>(
      std::count(places.begin(), places.end(), places[static_cast<size_t>(world.rank())]));
  const bool any_shared =
      std::set<std::string>(places.begin(), places.end()).size() < places.size();
  int64_t budget = 0;
  world.together([&] {
    if (any_shared && config.parallel.collectives != "mpi") {
      fail(ExitCode::usage, "parallel.collectives",
           fmt::format("{} ranks have fewer GPUs than ranks", world.size()),
           "start one rank per GPU, or set parallel.collectives = \"mpi\" to let ranks share one");
    }
    budget = share_of(gpu_free_bytes(device), sharing);
  });
  machine.collectives = std::make_unique<StagedCollectives>(std::make_unique<MpiCollectives>(world),
                                                            *machine.backend);
  machine.memory_budget = -machine.collectives->all_reduce_max(-budget);
  machine.gpus = world.gather_text(gpu.name);
  machine.description = fmt::format("cuda ({}, driver for CUDA {})", gpu.name, gpu.driver);
  return machine;
}

}  // namespace

Machine open_machine(const Config& config, const World& world) {
  bool cuda = false;
  world.together([&] { cuda = wants_cuda(config.run.backend); });
  world.agree("which backend there is", cuda ? "cuda" : "cpu");
  return cuda ? open_cuda(config, world) : open_cpu(config, world);
}

}  // namespace utrain
