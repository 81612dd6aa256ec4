// What a run has done so far, over all its restarts: told at the end, kept in checkpoints.
#pragma once

#include <cstdint>
#include <string>

#include "io/json.h"

namespace utrain {

struct RunTotals {
  // Of all steps up to the last one known, whoever made them; in checkpoints.
  int64_t steps = 0, skipped = 0;
  int64_t overflowed = 0;  // of the skipped: float16 under a scale that was too large
  int64_t tokens = 0, target_tokens = 0;
  double step_seconds = 0.0;  // without evaluation and saving
  double first_loss = 0.0, last_loss = 0.0;
  double first_eval_loss = 0.0, last_eval_loss = 0.0;
  int64_t n_evaluations = 0;
  double model_flops = 0.0;  // of all steps and ranks: model/flops.h
  int64_t restarts = 0;
  int64_t n_checkpoints = 0;  // written

  // Of this process.
  double own_step_seconds = 0.0;       // of step_seconds
  double exposed_seconds = 0.0;        // of those, rank 0: communication that nothing hid
  double start_seconds = 0.0;          // from exec to the first step
  double first_step_seconds = 0.0;     // from exec to its end; 0: there was none
  double save_seconds = 0.0;           // of the end
  double stall_seconds = 0.0;          // of the steps, by checkpoints
  double longest_stall_seconds = 0.0;  // by one
  double wall_seconds = 0.0;           // from exec
  int64_t peak_memory = 0;             // bytes, largest rank, as the operating system counts
  std::string output_path;             // of the adapter, or the model; empty: none written
  std::string last_checkpoint;         // its path; empty: none
  int64_t output_tensors = 0;
  int exit_code = 0;
};

// What of it checkpoints keep; there and back.
Json to_json(const RunTotals& totals);
RunTotals totals_from_json(const JsonObjectReader& json);

}  // namespace utrain
