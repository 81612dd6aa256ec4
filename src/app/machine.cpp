#include "app/machine.h"

#include <algorithm>
#include <cstdlib>

#include "comm/mpi_collectives.h"
#include "comm/nccl_collectives.h"
#include "core/available_memory.h"
#include "parallel/staged_collectives.h"

namespace utrain {

namespace {

constexpr int kFirstWithBf16 = 80;  // compute capability 8.0, the A100

// OMP_NUM_THREADS where the user set it, else this rank's share of the node's cores.
int threads_of_rank(const World& world) {
  const char* given = std::getenv("OMP_NUM_THREADS");
  const int asked = given != nullptr ? std::atoi(given) : 0;
  return asked > 0 ? asked : world.cores_per_rank();
}

bool wants_cuda(const std::string& backend) {
  return backend == "cuda" || (backend == "auto" && !visible_gpus().empty());
}

Machine open_cpu(const Config& config, const World& world) {
  Machine machine;
  const int threads = threads_of_rank(world);
  int64_t budget = 0;
  world.together([&] {
    check_cpu_collectives(config);
    set_cpu_threads(threads);
    machine.backend = make_cpu_backend(meaning_of_dtype(config.model.dtype, kNoGpu));
    budget = share_of(available_memory(), world.local_size());
  });
  machine.collectives = std::make_unique<MpiCollectives>(world);
  if (shards_in_nodes(config, world.n_nodes()))
    machine.node_collectives = std::make_unique<MpiCollectives>(world.node_group());
  machine.memory_budget = -machine.collectives->all_reduce_max(-budget);
  machine.host_memory_budget = machine.memory_budget;
  machine.description = fmt::format("{}, {} thread{} a rank", machine.backend->name(), threads,
                                    threads == 1 ? "" : "s");
  return machine;
}

// The ranks that share this rank's GPU, itself among them; none but itself unless sharing is
// allowed. Ranks that see one GPU each may still see the same one: places [ranks] tells hosts and
// GPUs apart.
int ranks_on_gpu(const World& world, const std::vector<std::string>& places, bool may_share) {
  const auto begin = places.begin(), end = places.end();
  world.together([&] {
    for (auto place = begin; place != end && !may_share; ++place) {
      const auto other = std::find(begin, place, *place);
      if (other == place) continue;
      fail(ExitCode::usage, "parallel.collectives",
           fmt::format("ranks {} and {} are on the same GPU of {}", other - begin, place - begin,
                       world.hosts()[static_cast<size_t>(place - begin)]),
           "start at most one rank per GPU, or set parallel.collectives = \"mpi\" to let ranks "
           "share one");
    }
  });
  return static_cast<int>(std::count(begin, end, places[static_cast<size_t>(world.rank())]));
}

// The names [ranks], but one for each place.
std::vector<std::string> once_each(const std::vector<std::string>& names,
                                   const std::vector<std::string>& places) {
  std::vector<std::string> distinct;
  for (size_t r = 0; r < places.size(); ++r) {
    const auto own = places.begin() + static_cast<ptrdiff_t>(r);
    if (std::find(places.begin(), own, places[r]) == own) distinct.push_back(names[r]);
  }
  return distinct;
}

// Backend and collectives have taken their memory: what is free now may be planned for. A cap
// counts theirs, and is kept as it is given.
int64_t gpu_budget(const Machine& machine, int device, int ranks, double cap_gb) {
  auto bytes = static_cast<double>(share_of(gpu_free_bytes(device), ranks));
  if (cap_gb > 0.0) {
    const int64_t held = machine.reserve_bytes();
    bytes = std::min(bytes, cap_gb * 1e9 - static_cast<double>(held));
    if (bytes <= 0.0) {
      fail(ExitCode::usage, "run.gpu_memory_gb",
           fmt::format("{} GB, of which libraries and communication hold {:.2f} GB", cap_gb,
                       static_cast<double>(held) * 1e-9),
           "raise it, or set 0 to take what is free");
    }
  }
  return static_cast<int64_t>(bytes);
}

// Collective over all ranks. first: other collectives of these, or null.
std::unique_ptr<Collectives> open_collectives(const World& world, const RankGroup& group,
                                              Backend& backend, bool nccl,
                                              const Collectives* first = nullptr) {
  if (nccl) return open_nccl_collectives(world, group, backend, {.beside = first});
  return std::make_unique<StagedCollectives>(std::make_unique<MpiCollectives>(group), backend);
}

Machine open_cuda(const Config& config, const World& world) {
  const std::string& wish = config.parallel.collectives;
  const bool nccl = wish == "nccl" || (wish == "auto" && nccl_is_built() && world.size() > 1);
  Machine machine;
  GpuInfo gpu;
  int device = 0;
  std::string versions;
  world.together([&] {
    const std::vector<GpuInfo> gpus = visible_gpus();
    set_cpu_threads(threads_of_rank(world));  // of loading
    if (!gpus.empty()) {
      device = world.local_rank() % static_cast<int>(gpus.size());
      gpu = gpus[static_cast<size_t>(device)];
    }
    const DType dtype = meaning_of_dtype(config.model.dtype, gpu.compute_capability);
    machine.backend = make_cuda_backend(dtype, device);  // tells what is missing
    versions = cuda_versions();
  });
  world.agree("model.dtype on their GPUs", std::string(name_of(machine.backend->dtype())));
  world.agree("the versions of CUDA and NCCL", versions);
  const std::vector<std::string> places = world.gather_text(world.host() + " " + gpu.uuid);
  const int ranks = ranks_on_gpu(world, places, wish == "mpi");
  machine.collectives = open_collectives(world, world.all_ranks(), *machine.backend, nccl);
  if (shards_in_nodes(config, world.n_nodes()))
    machine.node_collectives = open_collectives(world, world.node_group(), *machine.backend, nccl,
                                                machine.collectives.get());
  int64_t budget = 0, host_budget = 0;
  world.together([&] {
    budget = gpu_budget(machine, device, ranks, config.run.gpu_memory_gb);
    host_budget = share_of(available_memory(), world.local_size());
  });
  machine.memory_budget = -machine.collectives->all_reduce_max(-budget);
  machine.host_memory_budget = -machine.collectives->all_reduce_max(-host_budget);
  machine.gpus = world.gather_text(gpu.name);
  world.name_device(fmt::format("GPU {}, {}", device, gpu.name));
  machine.distinct_gpus = once_each(machine.gpus, places);
  machine.description = fmt::format("cuda ({}, {:.1f} GB, driver for CUDA {}{})", gpu.name,
                                    static_cast<double>(gpu.memory_bytes) * 1e-9, gpu.driver,
                                    nccl               ? ", NCCL " + nccl_version()
                                    : world.size() > 1 ? ", mpi"
                                                       : "");
  return machine;
}

// One for each way in which hosts have GPUs that do not work.
std::vector<std::string> gpu_warnings(const World& world) {
  std::string problem;
  world.together([&] { problem = gpu_problem(); });
  const std::vector<std::string> problems = world.gather_text(problem);
  std::vector<std::string> warnings;
  for (size_t r = 0; r < problems.size(); ++r) {
    const auto own = problems.begin() + static_cast<ptrdiff_t>(r);
    if (own->empty() || std::find(problems.begin(), own, *own) != own) continue;
    warnings.push_back(
        fmt::format("run.backend = \"auto\" takes the CPU: {}, on {}", *own, world.hosts()[r]));
  }
  return warnings;
}

}  // namespace

DType meaning_of_dtype(const std::string& dtype, int compute_capability) {
  if (dtype == "float32") return DType::f32;
  if (dtype == "float16") return DType::f16;
  if (dtype == "bfloat16") return DType::bf16;
  if (compute_capability == kNoGpu) return DType::f32;
  return compute_capability >= kFirstWithBf16 ? DType::bf16 : DType::f16;
}

// In one node the group would be the world.
bool shards_in_nodes(const Config& config, int n_nodes) {
  return config.parallel.strategy == "zero3" && config.parallel.shard_group == "node" &&
         n_nodes > 1;
}

int64_t share_of(int64_t bytes, int ranks) {
  return static_cast<int64_t>(kShareOfMemory * static_cast<double>(bytes)) / ranks;
}

void check_cpu_collectives(const Config& config) {
  if (config.parallel.collectives != "nccl") return;
  fail(ExitCode::usage, "parallel.collectives", "\"nccl\" is not available on the CPU",
       "set \"auto\" or \"mpi\"");
}

int64_t Machine::reserve_bytes() const {
  int64_t bytes = backend->reserve_bytes() + collectives->reserve_bytes();
  if (node_collectives) bytes += node_collectives->reserve_bytes();
  return bytes;
}

bool memory_holds(const Arena& arena, const Machine& machine) {
  return machine.budget().holds(arena) && arena.host_bytes() <= machine.host_memory_budget;
}

void check_host_memory(const Arena& arena, const Machine& machine) {
  if (machine.gpus.empty() || arena.host_bytes() <= machine.host_memory_budget) return;
  fail(ExitCode::usage, "host memory",
       text_of_shortage(arena.host_bytes(), machine.host_memory_budget,
                        "for what is offloaded and the copy that checkpoints are written from"),
       "offload less ([parallel] offload_params, offload_optimizer; train.recompute), shard with "
       "parallel.strategy = \"zero3\", run fewer ranks on a node, or ask for more host memory");
}

Machine open_machine(const Config& config, const World& world) {
  bool cuda = false;
  world.together([&] { cuda = wants_cuda(config.run.backend); });
  world.agree("which backend there is", cuda ? "cuda" : "cpu");
  if (cuda) return open_cuda(config, world);
  Machine machine = open_cpu(config, world);
  if (config.run.backend == "auto") machine.warnings = gpu_warnings(world);
  return machine;
}

}  // namespace utrain
