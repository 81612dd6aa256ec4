#include "train/optimizer.h"

#include "core/flat_block.h"

namespace utrain {

Optimizer::Optimizer(const Config::Train& options, Trainables& trainables, Backend& backend,
                     Arena& arena)
    : options_(options), trainables_(trainables), backend_(backend) {
  scaling_.dynamic = backend.rounds_to() == DType::f16;
  block_sums_id_ = arena.declare("gradient norm by block", backend.loss_dtype(), 1,
                                 trainables.n_elem() / kFlatBlock, MemoryClass::workspace);
  state_id_ =
      arena.declare("state of the step", DType::f64, 1, kStepStates, MemoryClass::workspace);
}

void Optimizer::bind(const Arena& arena) {
  block_sums_ = arena[block_sums_id_];
  state_ = arena[state_id_];
  std::array<double, kStepStates> state = {};
  state[static_cast<size_t>(StepState::loss_scale)] =
      scaling_.dynamic ? scaling_.initial_scale : 1.0;
  state[static_cast<size_t>(StepState::hysteresis_left)] = static_cast<double>(scaling_.hysteresis);
  backend_.upload(state_.data, state.data(), kStateBytes);
}

Tensor Optimizer::loss_scale() const {
  return scaling_.dynamic ? state_.columns(static_cast<int64_t>(StepState::loss_scale), 1)
                          : Tensor{};
}

void Optimizer::measure(const Tensor& loss) {
  trainables_.sum_of_squares(block_sums_);
  backend_.clip(state_, loss, block_sums_, options_.max_grad_norm, scaling_);
}

void Optimizer::step(const Tensor& loss, double lr) {
  measure(loss);
  if (trainables_.is_offloaded()) update_ticket_ = state_begin();
  trainables_.update([this, lr](const Trainables::Part& part) { update(part, lr); });
}

void Optimizer::update(const Trainables::Part& part, double lr) {
  const AdamW adamw{lr, options_.betas[0], options_.betas[1], options_.eps,
                    part.decays ? options_.weight_decay : 0.0};
  trainables_.update_backend().adamw_update(part.p, part.m, part.v, part.g, state_of_update(),
                                            adamw);
}

// In the memory of what updates.
Tensor Optimizer::state_of_update() {
  if (!trainables_.is_offloaded()) return state_;
  if (update_ticket_) update_state_ = state_end(*update_ticket_);
  update_ticket_.reset();
  return make_tensor(update_state_.data(), DType::f64, 1, kStepStates);
}

std::array<double, kStepStates> Optimizer::state_end(int64_t ticket) const {
  std::array<double, kStepStates> state;
  backend_.download_end(state.data(), ticket);
  return state;
}

void Optimizer::set_state(const std::array<double, kStepStates>& state) {
  backend_.upload(state_.data, state.data(), kStateBytes);
}

}  // namespace utrain
