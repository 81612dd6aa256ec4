// The quickstart's model and data, for plans.
#pragma once

#include "app/plan.h"
#include "config/input_file.h"
#include "places.h"

namespace utrain {

inline constexpr int64_t kPlenty = int64_t{1} << 40;  // bytes that everything fits in

// The quickstart's model and data, without its other keys.
inline std::string input_text(const std::string& train) {
  const std::string at = source_dir() + "/input/";
  return fmt::format(
      "[model]\npath = \"{0}models/tiny-llama\"\n"
      "[data]\ntrain = \"{0}data/definitions_train.h5\"\nseq_len = 256\n"
      "[train]\nmax_steps = 2\nwarmup_steps = 0\n{1}\n[run]\ndir = \"unused\"\n",
      at, train);
}

inline const std::string kTwoRows = "global_batch_size = 8\nmicro_batch_size = 2";

inline Job job_of(int ranks, const std::string& train, const std::vector<Override>& more = {}) {
  return read_job(parse_config(input_text(train), "plan.toml", more), ranks);
}

inline const PlanMachine kCpu = {DType::f32, 1, kPlenty};

}  // namespace utrain
