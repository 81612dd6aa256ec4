#include "train/optimizer.h"

#include "core/flat_block.h"

namespace utrain {

Optimizer::Optimizer(const Config::Train& options, const Adapters& adapters, Backend& backend,
                     Arena& arena)
    : options_(options), adapters_(adapters), backend_(backend) {
  const int64_t n = adapters.layout().n_elem();
  const DType wide = backend.trainable_dtype();
  m_id_ = arena.declare("Adam's first moment", wide, 1, n, MemoryClass::optimizer);
  v_id_ = arena.declare("Adam's second moment", wide, 1, n, MemoryClass::optimizer);
  block_sums_id_ = arena.declare("gradient norm by block", backend.loss_dtype(), 1, n / kFlatBlock,
                                 MemoryClass::workspace);
  state_id_ =
      arena.declare("state of the step", DType::f64, 1, kStepStates, MemoryClass::workspace);
}

void Optimizer::bind(const Arena& arena) {
  m_ = arena[m_id_];
  v_ = arena[v_id_];
  block_sums_ = arena[block_sums_id_];
  state_ = arena[state_id_];
  backend_.zero(state_);
  backend_.zero(m_);
  backend_.zero(v_);
}

void Optimizer::measure(const Tensor& loss) {
  backend_.sum_of_squares(block_sums_, adapters_.gradients());
  backend_.clip(state_, loss, block_sums_, options_.max_grad_norm, {});
}

void Optimizer::step(const Tensor& loss, double lr) {
  measure(loss);
  const AdamW adamw{lr, options_.betas[0], options_.betas[1], options_.eps, options_.weight_decay};
  backend_.adamw_update(adapters_.parameters(), m_, v_, adapters_.gradients(), state_, adamw);
}

std::array<double, kStepStates> Optimizer::state_end(int64_t ticket) const {
  std::array<double, kStepStates> state;
  backend_.download_end(state.data(), ticket);
  return state;
}

}  // namespace utrain
