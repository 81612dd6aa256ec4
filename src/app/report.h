// The table before the first step and the summary after the last: for a person as text, for scripts
// as summary.json.
#pragma once

#include <string>
#include <vector>

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
  int64_t passes_together = 1;
};

std::string start_table(const Job& job, const RunFacts& facts, const Arena& arena,
                        const std::vector<Recompute>& policy, const TrainableLayout& layout);

struct RunTotals {
  int64_t steps = 0, skipped = 0;
  int64_t overflowed = 0;  // of the skipped: float16 under a scale that was too large
  int64_t tokens = 0, target_tokens = 0;
  double step_seconds = 0.0;  // without evaluation and saving
  double first_loss = 0.0, last_loss = 0.0;
  double first_eval_loss = 0.0, last_eval_loss = 0.0;
  int64_t n_evaluations = 0;
  double exposed_seconds = 0.0;     // of step_seconds, rank 0: communication that nothing hid
  double model_flops = 0.0;         // of all steps and ranks: model/flops.h
  double start_seconds = 0.0;       // from exec to the first step
  double first_step_seconds = 0.0;  // from exec to its end
  double save_seconds = 0.0;
  double wall_seconds = 0.0;  // from exec
  int64_t peak_memory = 0;    // bytes, largest rank, as the operating system counts
  std::string output_path;    // of the adapter, or the model; empty: none written
  int64_t output_tensors = 0;
  int exit_code = 0;
};

std::string summary_json(const Job& job, const RunFacts& facts, const Trainer& trainer,
                         const RunTotals& totals);
std::string end_summary(const Job& job, const RunFacts& facts, const Trainer& trainer,
                        const RunTotals& totals);

}  // namespace utrain
