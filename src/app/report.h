// The table before the first step and the summary after the last: for a person as text, for scripts
// as summary.json.
#pragma once

#include <string>
#include <vector>

#include "app/run_totals.h"
#include "comm/world.h"
#include "train/trainer.h"

namespace utrain {

// What is told about a run besides its job.
struct RunFacts {
  std::string backend;  // "cpu, 2 threads a rank"
  DType dtype = DType::f32;
  int ranks = 1;
  int n_nodes = 1;
  std::vector<std::string> hosts;          // [ranks]
  std::vector<std::string> gpus;           // [ranks] names; none on the CPU
  std::vector<std::string> distinct_gpus;  // names, one for each GPU however many ranks share it
  std::vector<std::string> warnings;       // of the machine
  int64_t reserve_bytes = 0;  // of a GPU, besides the planned memory: libraries' workspace
  int64_t passes_together = 1, layers_held = kFewestLayersHeld;
  int64_t ranks_of_run = 0;  // that this checks; 0: those here, or not known
  std::string checkpoints;   // when, and where to
  std::string continues;     // from which one; empty: from none
};

std::string start_table(const Job& job, const RunFacts& facts, const Arena& arena,
                        const std::vector<Recompute>& policy, const TrainableLayout& layout);

std::string summary_json(const Job& job, const RunFacts& facts, const Trainer& trainer,
                         const RunTotals& totals);
std::string end_summary(const Job& job, const RunFacts& facts, const Trainer& trainer,
                        const RunTotals& totals);

}  // namespace utrain
