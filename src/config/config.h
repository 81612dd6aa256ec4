// Everything a run is told: one member per key of input.toml, with the default. The table in
// keys.cpp is the only other place that knows a key: it parses, checks, documents and prints all of
// them.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/projection.h"

namespace utrain {

struct Config {
  struct Model {
    std::string path;
    std::string dtype = "auto";
    std::string init = "pretrained";
    std::string quantize = "none";
  } model;
  struct Lora {
    int64_t r = 16;
    double alpha = 16.0;
    double dropout = 0.0;
    bool use_rslora = false;
    std::string init_from;
    // All of them; "all-linear" says the same.
    std::vector<std::string> target_modules{kProjectionNames.begin(), kProjectionNames.end()};
  } lora;
  struct Data {
    std::string train;
    std::string eval;
    int64_t seq_len = 2048;
    bool packing = true;
    bool shuffle = true;
    std::string too_long = "error";
  } data;
  struct Train {
    std::string method = "lora";
    int64_t max_steps = 0;  // exactly one of max_steps and epochs is set
    double epochs = 0.0;
    int64_t global_batch_size = 8;            // rows per optimizer step
    int64_t gradient_accumulation_steps = 0;  // or this: global = this * micro_batch_size * ranks
    int64_t micro_batch_size = 1;             // rows per rank and pass
    double lr = 2e-4;
    std::string schedule = "linear";
    int64_t warmup_steps = 5;
    double weight_decay = 0.01;
    std::vector<double> betas = {0.9, 0.999};
    double eps = 1e-8;
    double max_grad_norm = 1.0;  // 0 = no clipping
    int64_t seed = 3407;
    std::string recompute = "auto";
  } train;
  struct Eval {
    int64_t every = 0;  // steps; 0 = only after the last
    int64_t max_rows = 0;
  } eval;
  struct Parallel {
    std::string strategy = "ddp";
    std::string shard_group = "world";
    bool offload_optimizer = false;
    bool offload_params = false;
    std::string collectives = "auto";
  } parallel;
  struct Checkpoint {
    int64_t every = 0;
    int64_t keep = 3;
    std::string resume = "auto";
    std::vector<std::string> allow_changes;
  } checkpoint;
  struct Log {
    int64_t every = 1;
    bool tensorboard = false;
  } log;
  struct Run {
    std::string dir;
    std::string backend = "auto";
    bool overwrite = false;
    double gpu_memory_gb = 0.0;
    int64_t hang_timeout = 0;  // s
    double max_hours = 0.0;
  } run;

  std::set<std::string> given;  // the keys that the file or the command line set: "lora.r"
  bool is_given(const std::string& key) const { return given.count(key) != 0; }
};

}  // namespace utrain
