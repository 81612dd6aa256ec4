// Why this rank wants the run to stop, known at any time between two steps: SIGUSR1, SIGTERM or
// SIGINT, run.max_hours (without it: the end of the Slurm job), a file STOP in the run directory.
//   The first signal is a wish; ranks get theirs at different times, so they agree before they obey
// one. A second signal means now: the process is over with 128 + its number, nothing saved. Batch
// system and launcher may both forward one signal: what comes within kSameSignal is no second one.
#pragma once

#include <array>
#include <chrono>
#include <csignal>
#include <optional>
#include <string>

namespace utrain {

// Takes the signals while it lives. main has one from its first line on: what comes while MPI starts
// or the model is loaded is a reason at the first step. A second one within its life takes nothing
// from it.
//   SIGPIPE too, where no launcher reads the output: a Ctrl-C ends `| tee log` as well, and the run
// has yet to save. Output without a reader goes to /dev/null from then on.
class StopSignals {
 public:
  static constexpr std::chrono::milliseconds kSameSignal{200};

  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // For work that has nothing to save: from here on, and if one has come already, signals do what
  // they did before.
  void give_back();

 private:
  static constexpr std::array<int, 3> kSignals = {SIGUSR1, SIGTERM, SIGINT};
  void restore();

  std::array<struct sigaction, kSignals.size()> before_;
  std::optional<struct sigaction> before_pipe_;
  bool has_them_ = true;
};

// One at a time in a process.
class StopRequest {
 public:
  static constexpr double kSlurmMargin = 300.0;  // s before the end of the job; less in short jobs

  StopRequest() = default;
  ~StopRequest();  // STOP is removed where it was a reason, so that it stops one run
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  // Both once the input is known. max_hours counts from the start of the process; at 0 it is
  // SLURM_JOB_END_TIME that counts, where it is set.
  void limit_time(double max_hours);
  void look_into(const std::string& run_dir);  // on one rank, at most once a second

  // Empty = go on; else "SIGUSR1", "run.max_hours = 2 reached", ... Cheap, and the same from the
  // first reason on.
  std::string reason();

 private:
  using Clock = std::chrono::steady_clock;

  std::string find_reason();

  StopSignals signals_;
  std::optional<Clock::time_point> time_limit_;
  std::string limit_text_;
  std::string stop_file_;  // "": this rank does not look
  Clock::time_point next_look_;
  bool found_file_ = false;
  std::string reason_;
};

}  // namespace utrain
