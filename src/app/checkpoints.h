// Saving beside the training: what a step left is copied on the host (Trainer::capture), and written
// from there by a thread of each rank; when all have, a thread of rank 0 commits. One checkpoint at
// a time; which of its stages it is in, all ranks know alike.
//   copied      the numbers of its step are not known yet, or the copy is not there
//   writing     each rank its shard
//   committing  rank 0
// A thread that does not move for run.hang_timeout ends the run, whatever the steps do meanwhile.
// Only a step with finite numbers, and only finite values, become a checkpoint. A failure of a
// thread is thrown on all ranks by the next agree() or finish(). Every public call but the getters
// is collective.
#pragma once

#include <exception>
#include <functional>
#include <future>
#include <optional>
#include <string>

#include "app/run_directory.h"
#include "app/run_totals.h"
#include "checkpoint/write.h"
#include "comm/world.h"
#include "train/trainer.h"

namespace utrain {

// Whether a user should know that steps, which took so many seconds since the checkpoint before it
// was begun, then waited for that one.
constexpr bool is_long_wait(double waited, double between) {
  return waited >= 0.5 && waited >= 0.05 * between;
}

class Checkpoints {
 public:
  // directory: of rank 0, null on the others. identity, rank 0: the members "numbers" and
  // "fingerprint" of state.json.
  Checkpoints(const Job& job, Trainer& trainer, const World& world, RunDirectory* directory,
              std::function<Json()> identity);
  ~Checkpoints();
  Checkpoints(const Checkpoints&) = delete;
  Checkpoints& operator=(const Checkpoints&) = delete;

  // Once a step: takes what is under way further, and asks all ranks whether one wants to stop.
  // Returns the reason of the first that does.
  std::string agree(const std::string& stop_reason);
  // Of the last step. If one is under way, finish() comes first.
  void capture(int64_t step, std::optional<double> eval_loss);
  // What all steps have done up to this one, which has just become known; also again, after its
  // evaluation.
  void know(int64_t step, const RunTotals& totals);
  // Until nothing is under way; after Trainer::finish_steps().
  void finish();
  void finish_between_steps();  // the same, which steps wait for
  void finish_or_drop();        // the same, but what was only copied is given up
  void drop();                  // the same, but what is not being committed is given up

  bool is_under_way() const { return stage_ != Stage::none; }
  int64_t n_written() const { return n_written_; }             // by this process
  int64_t last_step() const { return last_step_; }             // of the last one written; 0: none
  const std::string& last_path() const { return last_path_; }  // rank 0
  // What the steps waited for checkpoints, on this rank; of the longest one.
  double stall_seconds() const { return stall_seconds_; }
  double longest_stall_seconds() const { return longest_stall_seconds_; }

 private:
  enum class Stage { none, copied, writing, committing };
  enum Work : int64_t { kDone, kRunning, kFailed };  // of this rank's thread
  struct Written {
    FileFacts shard;
    bool is_finite = true;
    std::string path;  // of the checkpoint, where it was committed
  };
  class Stall;  // what is done while it lives is one; those within it are part of it

  std::future<Written> write_beside(std::function<Written(const FileSign& sign)> write);
  Work work();
  void begin_writing(bool wait);
  void settle(Work of_any_rank);
  void commit();
  void done();
  [[noreturn]] void fail_together();
  FileSign sign_of_main() const;  // for files that the main thread is at
  Json state_json() const;
  int64_t bytes() const;

  const Job& job_;
  Trainer& trainer_;
  const World& world_;
  RunDirectory* directory_;
  std::function<Json()> identity_;
  Json known_identity_;

  Stage stage_ = Stage::none;
  std::string temp_;
  std::optional<Captured> captured_;
  int64_t step_ = 0;  // that is under way
  std::optional<double> eval_loss_;
  RunTotals totals_;  // of step_, once known
  int64_t known_step_ = 0;
  RunTotals known_;              // of known_step_, the last one known
  std::future<Written> thread_;  // valid while it runs
  Written written_;              // what it left
  std::exception_ptr failure_;   // or what it threw

  int64_t n_written_ = 0, last_step_ = 0;
  std::string last_path_;
  int n_stalls_ = 0;  // that live
  double stall_seconds_ = 0.0, longest_stall_seconds_ = 0.0, own_stall_seconds_ = 0.0;
};

}  // namespace utrain
