// Which checkpoint a run goes on from, as checkpoint.resume says. All ranks read and decide
// together: a checkpoint that one of them cannot read is damaged.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/report.h"
#include "checkpoint/read.h"
#include "comm/world.h"
#include "train/job.h"

namespace utrain {

struct Resumed {
  Checkpoint checkpoint;
  std::array<double, kStepStates> optimizer;  // indexed by StepState
  RunTotals totals;
  bool of_this_run = true;  // it lies in run.dir
  // Newer ones in run.dir.
  std::vector<std::string> damaged;  // and told
  std::vector<std::string> unused;   // passed over by name
};

std::string checkpoints_folder(const std::string& run_dir);

// What state.json keeps of the optimizer, and back.
Json optimizer_to_json(const std::array<double, kStepStates>& state);
std::array<double, kStepStates> optimizer_from_json(const JsonObjectReader& json);

// Empty: the run starts afresh. "auto" passes over damaged ones with a warning each, and no other
// word of them; a path means that one. Fails with no_checkpoint where none is left or the named one
// is damaged. Collective.
std::optional<Resumed> find_checkpoint(const Config& config, const World& world);

// Rank 0: that the job is the one the checkpoint was written by, but for what
// checkpoint.allow_changes names: returns which of those changed, "train.lr, train.seed". Fails with
// usage, one line for each other value that changed.
std::string check_same_job(const Resumed& resumed, const Job& job, const Backend& backend);

// "step 50 of PATH", and in what the continuation may round differently. ranks: of the run that
// follows, which may be others than the fingerprint's where this is but a check; 0: not known.
std::string text_of_resume(const Resumed& resumed, const Json& fingerprint, int64_t ranks);

}  // namespace utrain
