// What a person sees while training, on rank 0: a bar on a terminal, sparse lines in a file.
#pragma once

#include <chrono>
#include <string>

#include "train/trainer.h"

namespace utrain {

std::string text_of_bytes(int64_t bytes);      // "1.23 GB"
std::string text_of_seconds(double seconds);   // "42 s", "3:05", "2:03:05"
std::string text_of_duration(double seconds);  // "3.4 ms", "1.25 s"
std::string text_of_count(double n);           // "12,345"

// What was printed goes out. That its reader has gone is no fault of a run (see StopSignals).
void flush_lines();
// Fails with io where what was printed has not arrived.
void check_output();

class Progress {
 public:
  // every: steps between lines; not asked for, lines in a file come at most every 10 s, and at the
  // first step and the last.
  Progress(int64_t total_steps, int64_t every, bool every_is_given, int64_t first_step = 1);
  ~Progress();

  void step(const StepStats& stats);
  void evaluation(int64_t step, const EvalStats& stats);
  void note(const std::string& text);  // a line of its own, above the bar
  void busy(const std::string& what);  // what goes on when no step ends; the bar only

 private:
  void draw_bar(const std::string& text);
  void clear_bar();
  bool line_is_due(int64_t step) const;

  int64_t total_steps_, every_, first_step_;
  bool every_is_given_;
  bool terminal_;
  bool bar_is_drawn_ = false;
  std::chrono::steady_clock::time_point last_line_;
  double step_seconds_ = 0.0;  // of the steps so far
  int64_t steps_done_ = 0;
};

}  // namespace utrain
