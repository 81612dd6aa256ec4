// Training of one job on one rank: memory, the step, evaluation. The step is one page: train_step
// in trainer.cpp. Every public call from loaded() on is collective: all ranks make the same calls
// in the same order.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <optional>

#include "checkpoint/read.h"
#include "comm/collectives.h"
#include "model/transformer.h"
#include "parallel/model_state.h"
#include "parallel/replicas.h"
#include "train/device_pass.h"
#include "train/job.h"
#include "train/optimizer.h"
#include "train/state_copy.h"

namespace utrain {

// Replicas are compared after so many steps. Their checksums read what a rank holds once: 5 ms for
// 16 GB on a GPU of 3 TB/s.
inline constexpr int64_t kReplicasEvery = 100;

// What one optimizer step did; the same on every rank but for seconds and replicas.
struct StepStats {
  int64_t step = 0;        // from 1
  double epoch = 0.0;      // epochs done after this step
  double loss = 0.0;       // mean over the targets of the global batch, before the update
  double grad_norm = 0.0;  // before clipping
  double lr = 0.0;
  int64_t target_tokens = 0, tokens = 0;  // of the global batch
  double model_flops = 0.0;               // likewise: model/flops.h
  double seconds = 0.0;
  bool skipped = false;     // loss or norm not finite: no update
  bool overflowed = false;  // of float16: skipped, but a smaller scale of the loss will help
  std::string replicas;     // every kReplicasEvery steps: for find_differences; else empty
};

struct EvalStats {
  double loss = 0.0;  // sum of the cross entropy / targets
  int64_t target_tokens = 0;
};

// Where the time of a rank's device went, seconds. reduce: what the backward pass did not hide.
enum class Phase { forward_backward, reduce, optimizer, evaluation };
inline constexpr std::array<const char*, 4> kPhaseNames = {"forward_backward", "reduce",
                                                           "optimizer", "evaluation"};

// What a rank gives to a checkpoint: what a step left. shard lies in the trainer's memory and stays
// until the next capture().
struct Captured {
  int64_t step = 0;
  std::array<double, kStepStates> optimizer = {};  // indexed by StepState
  ShardState shard;
};

class Trainer {
 public:
  // Declares all memory. policy: see choose_recompute; passes_together: see choose_passes;
  // layers_held: see choose_layers_held.
  Trainer(const Job& job, Backend& backend, const Groups& groups, std::vector<Recompute> policy,
          int64_t passes_together = 1, int64_t layers_held = kFewestLayersHeld);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // To be called now and then while one call works, from any thread: it has not stopped.
  void set_progress(std::function<void()> progress) { progress_ = std::move(progress); }

  const Arena& arena() const { return arena_; }
  void place();  // takes the memory: all that a plan needs; not collective
  void load();   // place(), reads the base, initialises the adapters; not collective
  // After load(): what a checkpoint of as many elements holds, of any ranks and strategy; not
  // collective. optimizer: as Captured has it.
  void restore(const Checkpoint& checkpoint, const std::array<double, kStepStates>& optimizer);
  void loaded();  // after load() and restore() on every rank

  // Steps from 1, or the one after what was restored, each once and in order. Returns what has
  // become known since the last call: on a GPU the step before, so that the host is never waited
  // for.
  std::vector<StepStats> train_step(int64_t step);
  std::vector<StepStats> finish_steps();  // waits for the rest
  std::string replicas();  // after finish_steps: as they are now, for find_differences
  // Begins a copy of what the last step left, beside the steps that follow.
  void capture();
  // That copy, once it and the numbers of its step are there: on a GPU, when the step after it is
  // known. wait: now, after finish_steps().
  std::optional<Captured> captured(bool wait);
  // Cross entropy over the evaluation rows, without dropout. tick: called now and then, for
  // progress.
  EvalStats evaluate(const std::function<void()>& tick = {});

  // Forward and backward of the first global batch, no update; into the adapters' gradients.
  StepStats first_batch();
  // The rows of the first global batch as this rank's passes, forward only: calls visit for every
  // document with its logits [length, V], converted to float32, on the rank that holds it.
  using LogitsVisitor =
      std::function<void(int64_t document, int64_t length, const std::vector<float>& logits)>;
  void visit_logits(const LogitsVisitor& visit);

  const ModelState& model_state() const { return state_; }
  // Of all that is trained, as model_state().layout() says, on every rank.
  std::vector<float> parameters_on_host() { return state_.parameters_on_host(); }
  // One unit of that, to be read in pieces: see Trainables.
  Trainables::Gathered gather_parameters(int64_t unit) {
    return state_.trainables().gather_parameters(unit);
  }
  void read(const Trainables::Gathered& unit, int64_t first, std::span<float> out) {
    state_.trainables().read(unit, first, out);
  }
  std::vector<float> gradients_on_host() { return state_.gradients_on_host(); }
  // Of the steps so far: what Collectives::exposed_seconds counted in them. Waits for them.
  double exposed_seconds() const;
  double phase_seconds(Phase phase) const { return phase_seconds_[static_cast<size_t>(phase)]; }

 private:
  // A step that is under way: what will be read, and moments of the device between its phases.
  struct StepUnderWay {
    StepStats stats;
    int64_t state, start, accumulated, reduced, end;
    std::optional<int64_t> replicas;
  };
  void accumulate_gradients(const BatchPlan::Step& batch, const Tensor& loss_scale);
  using RowsOfPasses = std::vector<std::vector<int64_t>>;
  // Passes [first, first + passes together) that have rows.
  std::vector<TokenBatch> upload(const TokenDataSet& data, const Rows& rows,
                                 const RowsOfPasses& passes, size_t first);
  double flops_of(const BatchPlan::Step& batch) const;
  std::vector<StepStats> collect(size_t under_way);
  void know(int64_t step, const std::array<double, kStepStates>& state);
  void add_seconds(Phase phase, double seconds);
  double loss_on_host() const;

  const Job& job_;
  Backend& backend_;
  Groups groups_;
  Collectives& collectives_;  // of all ranks
  size_t passes_together_;
  std::optional<BatchPlan> plan_;  // from place() on: it reads all the data
  std::function<void()> progress_ = [] {};
  Arena arena_;
  std::shared_ptr<void> host_memory_;  // the arena's
  ModelState state_;
  Activations activations_;
  Transformer model_;
  Optimizer optimizer_;
  Replicas replicas_;
  DevicePass device_pass_;
  StateCopy copy_;
  Arena::Id loss_id_;
  Tensor loss_;  // [1, 1] sum of the cross entropy of this rank's passes
  std::deque<StepUnderWay> under_way_;
  int64_t last_step_ = 0;                 // that was begun
  Captured known_;                        // but for the shard: of the last step known
  std::optional<Captured> captured_;      // being copied; its step is known
  std::optional<int64_t> captured_step_;  // being copied; it is not
  std::array<double, kPhaseNames.size()> phase_seconds_ = {};
  std::optional<double> exposed_outside_;  // seconds before the first step and in evaluations
};

}  // namespace utrain
