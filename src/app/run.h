// The loop around the step: evaluation, metrics, checkpoints, progress, the end. Rank 0 has the run
// directory and the progress. Every call is collective.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/checkpoints.h"
#include "app/prepare.h"
#include "app/progress.h"
#include "app/run_directory.h"
#include "app/stop.h"

namespace utrain {

class Run {
 public:
  Run(Prepared& prepared, const World& world, int64_t n_steps, bool dry_run, StopRequest& stop);

  bool train();  // false: stopped before the last step, and saved
  void save();   // the adapter or the model
  // Says how it went, writes summary.json, and returns code. Fails with io, in summary.json too,
  // where standard output is lost.
  ExitCode finish(ExitCode code);

 private:
  void sum_up(ExitCode code);
  void write_summary(ExitCode code);
  void report(const std::vector<StepStats>& steps);
  void report(const StepStats& stats);
  void count(const StepStats& stats);
  bool evaluates(int64_t step) const;
  void evaluate(int64_t step);
  bool is_due(int64_t step) const;
  void capture(int64_t step);
  void stop_after(int64_t step, const std::string& reason);
  void compare(int64_t step, const std::string& replicas);
  [[noreturn]] void fail_diverged(const std::string& what);
  [[noreturn]] void end_failing(ExitCode code, const std::string& line);  // with a summary

  Prepared& p_;
  const World& world_;
  StopRequest& stop_;
  int64_t n_steps_, first_step_ = 1;
  bool dry_run_;  // nothing is written but metrics
  std::optional<RunDirectory> directory_;
  std::optional<Progress> progress_;
  std::optional<Checkpoints> checkpoints_;
  RunTotals totals_;
  std::vector<float> parameters_;  // after the last step
  int bad_steps_ = 0;              // in a row, up to the last one known
  int64_t evaluated_step_ = 0;     // the last one
  std::string how_it_stopped_;     // and how to go on; empty: it did not
  bool has_warned_of_saving_ = false;
  std::chrono::steady_clock::time_point captured_at_;  // the last time, for a checkpoint
};

}  // namespace utrain
