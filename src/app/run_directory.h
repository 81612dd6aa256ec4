// The run directory: metrics.jsonl, adapter/, summary.json, input.resolved.toml. Used by rank 0
// alone; a lock keeps a second job out while this one lives.
#pragma once

#include <cstdio>
#include <optional>
#include <string>

#include "config/config.h"
#include "io/json.h"
#include "train/trainer.h"

namespace utrain {

// Fails where dir holds a finished run and overwrite is off, is in use, or cannot be a directory
// (usage), or cannot be written (io). Reads only.
void check_run_directory(const std::string& dir, bool overwrite);

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
  // Checks, creates, locks, and clears what an unfinished or overwritten run left; a dry run clears
  // and writes metrics alone. Fails with usage, or io.
  RunDirectory(const std::string& dir, bool overwrite, bool dry_run);
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
  void sync_metrics();  // to disk: a network file system tells of a full disk only here
  void write_text(const std::string& name, const std::string& text);

 private:
  void write_line(const Json& line);

  std::string dir_;
  std::optional<RunLock> lock_;  // taken once the directory is there
  int metrics_ = -1;
};

}  // namespace utrain
