#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace utrain {

Optimizer::Optimizer(const Config::Train& options, const Adapters& adapters, Backend& backend,
                     Arena& arena)
    : options_(options), adapters_(adapters), backend_(backend) {
  const int64_t n = adapters.layout().n_elem();
  const DType wide = backend.trainable_dtype();
  m_id_ = arena.declare("Adam's first moment", wide, 1, n, MemoryClass::optimizer);
  v_id_ = arena.declare("Adam's second moment", wide, 1, n, MemoryClass::optimizer);
  block_sums_id_ = arena.declare("gradient norm by block", backend.loss_dtype(), 1, n / 1024,
                                 MemoryClass::workspace);
}

void Optimizer::bind(const Arena& arena) {
  m_ = arena[m_id_];
  v_ = arena[v_id_];
  block_sums_ = arena[block_sums_id_];
  backend_.zero(m_);
  backend_.zero(v_);
}

double Optimizer::grad_norm() const {
  backend_.sum_of_squares(block_sums_, adapters_.gradients());
  ASSERT(block_sums_.dtype == DType::f64);
  std::vector<double> sums(static_cast<size_t>(block_sums_.cols));
  backend_.download(sums.data(), block_sums_.data,
                    static_cast<int64_t>(sums.size() * sizeof(double)));
  double sum = 0.0;
  for (const double s : sums) sum += s;
  return std::sqrt(sum);
}

void Optimizer::update(double lr, double grad_norm) {
  AdamW adamw;
  adamw.lr = lr;
  adamw.beta1 = options_.betas[0];
  adamw.beta2 = options_.betas[1];
  adamw.eps = options_.eps;
  adamw.weight_decay = options_.weight_decay;
  if (options_.max_grad_norm > 0.0) {
    adamw.grad_scale = std::min(1.0, options_.max_grad_norm / (grad_norm + 1e-6));
  }
  adamw.t = ++n_updates_;
  backend_.adamw_update(adapters_.parameters(), m_, v_, adapters_.gradients(), adamw);
}

}  // namespace utrain
