// Gradient norm, clipping and AdamW on the flat trainable buffers.
//   norm = sqrt(sum g^2), sums of whole blocks added in block order
//   factor = min(1, max_norm / (norm + 1e-6))
//   AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101, as torch computes it
#pragma once

#include <array>
#include <optional>

#include "config/config.h"
#include "parallel/trainables.h"

namespace utrain {

class Optimizer {
 public:
  Optimizer(const Config::Train& options, Trainables& trainables, Backend& backend, Arena& arena);
  void bind(const Arena& arena);  // after the arena is placed

  // Norm of the gradients, clipping, and one update of the parameters; nothing but the norm where
  // it or loss [1, 1] is not finite. Where the optimizer is offloaded the update is done as the next
  // pass asks for units (Trainables), and the host waits for the norm then. Collective.
  void step(const Tensor& loss, double lr);
  // The norm alone.
  void measure(const Tensor& loss);
  // [1, 1] float64 on the device, what the loss of the next step is to be scaled by; empty where
  // nothing is scaled, which is so but for float16.
  Tensor loss_scale() const;
  // What the last step, or measure(), found; in the order of the calls, to be waited for later.
  int64_t state_begin() const { return backend_.download_begin(state_.data, kStateBytes); }
  std::array<double, kStepStates> state_end(int64_t ticket) const;  // indexed by StepState
  void set_state(const std::array<double, kStepStates>& state);     // to go on from

 private:
  void update(const Trainables::Part& part, double lr);
  Tensor state_of_update();
  static constexpr int64_t kStateBytes = kStepStates * sizeof(double);

  Config::Train options_;
  LossScaling scaling_;
  Trainables& trainables_;
  Backend& backend_;
  Arena::Id block_sums_id_, state_id_;
  Tensor block_sums_;                     // [1, n / kFlatBlock] loss dtype
  Tensor state_;                          // [1, kStepStates] float64, indexed by StepState
  std::optional<int64_t> update_ticket_;  // of the state of an offloaded update, not read yet
  std::array<double, kStepStates> update_state_ = {};
};

}  // namespace utrain
