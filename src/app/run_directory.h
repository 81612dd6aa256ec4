// The run directory: metrics.jsonl, adapter/, summary.json, input.resolved.toml. Used by rank 0
// alone; a lock keeps a second job out while this one lives.
#pragma once

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "io/file.h"
#include "io/json.h"
#include "train/trainer.h"

namespace utrain {

// A summary.json that tells of exit code 0.
bool holds_finished_run(const std::string& dir);

// What a run removes or replaces in its directory.
std::vector<std::string> names_cleared(bool dry_run);

// Fails where dir holds a finished run and overwrite is off, is in use, cannot be a directory, holds
// under a name of ours something else, or what cannot be cleared, or checkpoints while a dry run
// would replace the metrics that belong to them (usage), or cannot be written (io). Reads only.
void check_run_directory(const std::string& dir, bool overwrite, bool dry_run);

// How a run takes its directory.
struct RunStart {
  bool dry_run = false;             // writes metrics alone
  bool clears_checkpoints = false;  // begins again, and may lose the checkpoints that are there
  int64_t after_step = 0;  // goes on from a checkpoint of this directory; its metrics go on, too
  // Checkpoints newer than that, whose names are taken away: with a warning, and told already.
  std::vector<std::string> unused, damaged;
};

// Keeps a second job out of a directory while this one lives. A file system without locks only gets
// a warning. The file goes with its holder; one left by a killed job holds nobody up.
class RunLock {
 public:
  explicit RunLock(const std::string& dir);  // fails with usage where another holds it, or io
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  std::string path_;
  int file_ = -1;
};

class RunDirectory {
 public:
  // Checks, creates, locks, and clears what the run does not go on from. Fails with usage, or io.
  // sign is given at each file of an earlier run that goes.
  RunDirectory(const std::string& dir, bool overwrite, const RunStart& start,
               const FileSign& sign = {});
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return dir_; }
  std::string adapter_path() const { return dir_ + "/adapter"; }
  std::string model_path() const { return dir_ + "/model"; }  // of full fine-tuning
  // One line each, in the system's hands when the call returns, so a killed process loses none.
  // Fails with io.
  void write_metrics(const StepStats& stats);
  void write_metrics(int64_t step, const EvalStats& stats);
  // To disk: a network file system tells of a full disk only here. By any thread.
  void sync_metrics();
  void write_text(const std::string& name, const std::string& text);

 private:
  void take(bool overwrite, const RunStart& start, const FileSign& sign);
  void write_line(const Json& line);

  std::string dir_;
  std::optional<RunLock> lock_;  // taken once the directory is there
  int metrics_ = -1;
};

}  // namespace utrain
