// What a step would take and send under each strategy, without taking or sending it: the trainer
// itself runs on a backend that computes nothing and collectives that only count, so a plan is a
// run, not a second formula.
//   memory      of the last rank, whose slices are the largest
//   bytes sent, FLOPs  of the first rank, which has the most rows, in a step of the first rows
#pragma once

#include <array>
#include <string>
#include <vector>

#include "comm/silent_collectives.h"
#include "model/activations.h"
#include "train/job.h"

namespace utrain {

inline constexpr std::array<const char*, 4> kStrategies = {"ddp", "zero1", "zero2", "zero3"};

// What the ranks compute on.
struct PlanMachine {
  DType dtype = DType::bf16;
  int64_t row_multiple = 1;            // of the backend
  int64_t budget = 0;                  // bytes a rank may plan for
  bool gpu = false;                    // false: what lies in host memory is of the same budget
  int ranks_on_node = 0;               // 0: all
  int64_t node_collectives_bytes = 0;  // of the budget, where the base is sharded in nodes
};

struct StrategyPlan {
  std::string strategy;
  bool fits = false;
  std::array<int64_t, kMemoryClasses.size()> bytes = {};  // by MemoryClass
  int64_t total_bytes = 0;                                // of the device
  int64_t collectives_bytes = 0;                          // besides, of those in nodes
  int64_t needed_bytes = 0;                               // of the budget
  std::vector<Recompute> policy;  // as the run would choose it; where nothing fits, the smallest
  int64_t passes_together = 1;    // likewise, as far as the device's memory goes
  int64_t layers_held = kFewestLayersHeld;  // likewise
  BytesSent sent;                           // a step
  int64_t copied_in = 0, copied_out = 0;    // from and to host memory in a step: what is offloaded
  double flops = 0.0;  // of matrix products in a step, with what is computed again

  int64_t bytes_of(MemoryClass m) const { return bytes[static_cast<size_t>(m)]; }
};

// job: read for the ranks that are planned for. It is as before when the call returns.
StrategyPlan plan_strategy(Job& job, const std::string& strategy, const PlanMachine& machine);

// Of a GPU's peak, what a step is taken to reach: as LoRA of the 8B shape does on an H100
// (docs/measured.md).
inline constexpr double kShareOfPeak = 0.5;

// What bytes travel over: one direction of a GPU's link, as data sheets say, not as measured.
struct Link {
  const char* name;
  double bytes_per_second;
};
inline constexpr std::array<Link, 3> kLinks = {
    {{"NVLink", 300e9}, {"400 Gbit/s network", 50e9}, {"200 Gbit/s network", 25e9}}};
inline constexpr size_t kNvlink = 0, kNetwork = 1;

struct Plan {
  std::string input;  // as the user named it
  Config config;
  int ranks = 1, ranks_on_node = 1;
  bool gpu = true;
  PlanMachine machine;
  double gpu_memory_gb = 0.0;  // 0 on the CPU
  bool gpu_memory_is_assumed = false;
  int64_t reserve_bytes = 0;             // of that, what libraries hold as far as it is known
  int64_t context_bytes = 0;             // besides, CUDA's context
  double flops_per_second = 0.0;         // of a rank; 0 = not known
  std::vector<std::string> warnings;     // of the job
  std::vector<StrategyPlan> strategies;  // [4] in the order of kStrategies
  int taken = -1;                        // index of the one to take; -1: none fits
  std::string why;                       // one line
};

// Reads what the configuration names; needs neither GPU nor ranks. ranks_on_node: that share a
// node's memory; knows_nodes: so they will in the run. Throws as read_job, and where a run would
// refuse its machine.
Plan make_plan(const std::string& input, const Config& config, int ranks, int ranks_on_node,
               bool knows_nodes);

}  // namespace utrain
