// Training of one job on one rank: memory, the step, evaluation. The step is one page: train_step
// in trainer.cpp. Every public call from load() on is collective: all ranks make the same calls in
// the same order.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <optional>

#include "comm/collectives.h"
#include "model/transformer.h"
#include "train/device_pass.h"
#include "train/job.h"
#include "train/optimizer.h"

namespace utrain {

// What one optimizer step did; the same on every rank but for seconds.
struct StepStats {
  int64_t step = 0;        // from 1
  double epoch = 0.0;      // epochs done after this step
  double loss = 0.0;       // mean over the targets of the global batch, before the update
  double grad_norm = 0.0;  // before clipping
  double lr = 0.0;
  int64_t target_tokens = 0, tokens = 0;  // of the global batch
  double seconds = 0.0;
  bool skipped = false;  // loss or norm not finite: no update
};

struct EvalStats {
  double loss = 0.0;  // sum of the cross entropy / targets
  int64_t target_tokens = 0;
};

// Where the wall time of a rank went, seconds.
enum class Phase { data, forward_backward, reduce, optimizer, evaluation };
inline constexpr std::array<const char*, 5> kPhaseNames = {"data", "forward_backward", "reduce",
                                                           "optimizer", "evaluation"};

class Trainer {
 public:
  // Declares all memory. policy: see choose_recompute.
  Trainer(const Job& job, Backend& backend, Collectives& collectives,
          std::vector<Recompute> policy);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  const Arena& arena() const { return arena_; }
  void load();  // takes the memory, reads the base, initialises the adapters

  StepStats train_step(int64_t step);  // from 1, each once and in order
  // Cross entropy over the evaluation rows, without dropout. tick: called after each pass, for
  // progress.
  EvalStats evaluate(const std::function<void()>& tick = {});

  // Forward and backward of the first global batch, no update; into the adapters' gradients.
  StepStats first_batch();
  // The rows of the first global batch as this rank's passes, forward only: calls visit for every
  // document with its logits [length, V], converted to float32, on the rank that holds it.
  using LogitsVisitor =
      std::function<void(int64_t document, int64_t length, const std::vector<float>& logits)>;
  void visit_logits(const LogitsVisitor& visit);

  const Adapters& adapters() const { return adapters_; }
  double phase_seconds(Phase phase) const { return phase_seconds_[static_cast<size_t>(phase)]; }

 private:
  void accumulate_gradients(const BatchPlan::Step& batch);
  void reduce_over_ranks();
  template <class F>
  void timed(Phase phase, F&& work);
  double loss_on_host() const;

  const Job& job_;
  Backend& backend_;
  Collectives& collectives_;
  std::optional<BatchPlan> plan_;  // from load() on: it reads all the data
  Arena arena_;
  Weights weights_;
  Adapters adapters_;
  Activations activations_;
  Transformer model_;
  Optimizer optimizer_;
  DevicePass device_pass_;
  Arena::Id loss_id_;
  Tensor loss_;  // [1, 1] sum of the cross entropy of this rank's passes
  std::array<double, kPhaseNames.size()> phase_seconds_ = {};
};

}  // namespace utrain
