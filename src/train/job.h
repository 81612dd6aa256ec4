// All that is known of a run before any memory is taken for it: input read and checked, rows made,
// steps counted. The same on every rank.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"
#include "data/batch_plan.h"
#include "data/rows.h"
#include "data/token_data_set.h"
#include "model/architecture.h"
#include "parallel/model_state.h"

namespace utrain {

struct Job {
  Config config;  // alpha, r and targets resolved from the adapter where one is given
  Architecture architecture;
  LoraOptions lora;
  std::vector<float> adapter;  // the flat parameters to go on from; empty = init_trainables
  uint64_t model_hash = 0;     // of config.json and adapter: ranks must agree
  TokenDataSet train, eval;
  Rows train_rows, eval_rows;  // eval: in file order; none without data.eval
  int ranks = 1;
  int64_t global_batch_size = 0;
  int64_t total_steps = 0;
  int64_t steps_per_epoch = 0;
  std::vector<std::string> warnings;

  BatchPlan plan() const;
  ModelState::Options model_options(int64_t layers_held = kFewestLayersHeld) const;
  bool is_full() const { return config.train.method == "full"; }
  double dropout() const;  // of the adapters' input
  bool has_eval() const { return !config.data.eval.empty(); }
  int64_t pass_capacity() const;     // tokens of the largest pass, of training and evaluation
  int64_t longest_document() const;  // tokens, as used
};

// Throws Error: usage (2) or bad_file (3).
Job read_job(const Config& config, int ranks);

}  // namespace utrain
