// What the ranks compute on: the backend, its dtype, the collectives, the memory a rank may take.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "comm/collectives.h"
#include "comm/world.h"
#include "config/config.h"
#include "core/memory_budget.h"
#include "parallel/groups.h"

namespace utrain {

// The part of free memory that ranks may plan for; the rest is left to the system, the driver and
// libraries.
inline constexpr double kShareOfMemory = 0.9;
int64_t share_of(int64_t bytes, int ranks);  // of each of `ranks` that have these free

struct Machine {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Collectives> collectives;  // goes before the backend
  // Of this node's ranks, where zero3 shards the base in nodes and there are several; or null.
  std::unique_ptr<Collectives> node_collectives;
  int64_t memory_budget = 0;               // bytes a rank may plan for, the same on all ranks
  int64_t host_memory_budget = 0;          // likewise of host memory; on the CPU both are the same
  std::string description;                 // "cpu, 2 threads a rank"
  std::vector<std::string> gpus;           // [ranks] name of each rank's GPU; none on the CPU
  std::vector<std::string> distinct_gpus;  // names of the GPUs, each once that ranks share
  std::vector<std::string> warnings;       // what the user should know of the machine

  MemoryBudget budget() const { return {memory_budget, gpus.empty()}; }
  Groups groups() const {
    return {*collectives, node_collectives ? *node_collectives : *collectives};
  }
  // Device memory that libraries and communication hold.
  int64_t reserve_bytes() const;
};

// What model.dtype means: "auto" is bfloat16 where the GPU has it, else float16; float32 on the CPU.
inline constexpr int kNoGpu = 0;  // in the place of a GPU's compute capability
DType meaning_of_dtype(const std::string& dtype, int compute_capability);

// Whether the base of zero3 is sharded in each node: then a rank has node_collectives too.
bool shards_in_nodes(const Config& config, int n_nodes);

// Fails with usage where parallel.collectives cannot be had on the CPU.
void check_cpu_collectives(const Config& config);

// Whether there is the memory that the arena wants; then, a usage error where a GPU's host has not.
bool memory_holds(const Arena& arena, const Machine& machine);
void check_host_memory(const Arena& arena, const Machine& machine);

// Collective; all ranks leave alike. Fails with usage where the backend, its dtype or the placement
// is not available.
Machine open_machine(const Config& config, const World& world);

}  // namespace utrain
