#include "plan/op_cost.h"

#include <algorithm>
#include <initializer_list>

namespace utrain {

namespace {

constexpr int64_t kIndexBytes = 4;  // a token, a row, a position

double bytes_of(const Tensor& x) {
  return static_cast<double>(x.empty() ? 0 : x.n_elem() * size_of(x.dtype));
}

OpCost moves(std::initializer_list<Tensor> operands, int64_t indices = 0) {
  OpCost cost;
  for (const Tensor& x : operands) cost.bytes += bytes_of(x);
  cost.bytes += static_cast<double>(indices * kIndexBytes);
  return cost;
}

double product(int64_t m, int64_t n, int64_t k) {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

double products_of_pairs(const AttentionShape& shape, int64_t pairs) {
  return product(shape.Hq, shape.D, pairs);
}

}  // namespace

OpCost cost_of_zero(const Tensor& x) {
  return moves({x});
}

OpCost cost_of_convert(const Tensor& y, const Tensor& x) {
  return moves({y, x});
}

OpCost cost_of_embedding_forward(const Tensor& x) {
  return moves({x, x}, x.rows);  // as many rows of the table as of x
}

OpCost cost_of_embedding_backward(const Tensor& dtable, const Tensor& dx) {
  OpCost cost = moves({dx}, 2 * dx.rows);
  cost.bytes += 2.0 * static_cast<double>(dx.n_elem() * size_of(dtable.dtype));
  return cost;
}

OpCost cost_of_rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                               const Tensor& weight) {
  return moves({y, rstd, x, weight});
}

OpCost cost_of_residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd,
                                        const Tensor& x, const Tensor& branch,
                                        const Tensor& weight) {
  return moves({h, y, rstd, x, branch, weight});
}

OpCost cost_of_rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy,
                                const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                float beta) {
  return moves({dx, beta == 0.0f ? Tensor{} : dx, dweight, dweight, dy, x, rstd, weight});
}

OpCost cost_of_residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch) {
  return moves({h, x, branch});
}

OpCost cost_of_rope(const Tensor& x, const Tensor& cos_sin) {
  return moves({x, x, cos_sin.first_rows(std::min(x.rows, cos_sin.rows))}, x.rows);
}

OpCost cost_of_attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q,
                                 const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                 int64_t pairs) {
  OpCost cost = moves({out, lse, q, k, v}, 2 * q.rows);
  cost.flops = 2.0 * products_of_pairs(shape, pairs);
  return cost;
}

OpCost cost_of_attention_backward(const Tensor& dqkv, const Tensor& dout, const Tensor& out,
                                  const Tensor& lse, const Tensor& qkv, const AttentionShape& shape,
                                  int64_t pairs) {
  OpCost cost = moves({dqkv, dout, out, lse, qkv}, 2 * qkv.rows);
  cost.flops = 5.0 * products_of_pairs(shape, pairs);
  return cost;
}

OpCost cost_of_swiglu_forward(const Tensor& act, const Tensor& gate_up) {
  return moves({act, gate_up});
}

OpCost cost_of_swiglu_backward(const Tensor& dgate_up, const Tensor& dact, const Tensor& gate_up) {
  return moves({dgate_up, dact, gate_up});
}

LinearCost cost_of_linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x,
                                  const Linear& linear) {
  const int64_t N = x.rows;
  LinearCost cost;
  cost.base = moves({y, x, linear.W, linear.bias});
  cost.base.flops = product(N, linear.W.rows, linear.W.cols);
  if (linear.adapters.empty()) return cost;
  cost.adapters = moves({xa});
  for (const LoraAdapter& adapter : linear.adapters) {
    cost.adapters += moves({adapter.A, adapter.B});
    cost.adapters.flops += product(N, linear.r, x.cols + adapter.B.rows);
  }
  return cost;
}

LinearCost cost_of_linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x,
                                   const Tensor& xa, const Linear& linear) {
  const int64_t N = x.rows;
  LinearCost cost;
  const bool trains_W = !linear.dW.empty();
  if (!dx.empty()) {
    cost.base = moves({dx, dy, linear.W});
    cost.base.flops = product(N, linear.W.rows, linear.W.cols);
  }
  if (trains_W) {
    cost.base += moves({x, dx.empty() ? dy : Tensor{}, linear.dW, linear.dW});
    cost.base.flops += product(N, linear.W.rows, linear.W.cols);
  }
  cost.base += moves({linear.dbias, linear.dbias});
  if (linear.adapters.empty()) return cost;
  cost.adapters = moves({trains_W ? Tensor{} : x, xa});
  for (const LoraAdapter& adapter : linear.adapters) {
    const bool reads_dy = dx.empty() && !trains_W;
    const Tensor dy_read = reads_dy ? dy.columns(adapter.row_begin, adapter.B.rows) : Tensor{};
    cost.adapters +=
        moves({dy_read, adapter.A, adapter.B, adapter.dA, adapter.dA, adapter.dB, adapter.dB});
    // dy B, dB and dA; then what goes on to dx.
    cost.adapters.flops += product(N, linear.r, 2 * adapter.B.rows + x.cols);
    if (!dx.empty()) cost.adapters.flops += product(N, linear.r, x.cols);
  }
  return cost;
}

OpCost cost_of_cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x,
                             const Head& head, int64_t n_targets) {
  const Tensor dW = dx.empty() ? Tensor{} : head.dW;
  const int n_products = dx.empty() ? 1 : dW.empty() ? 2 : 3;
  OpCost cost = moves({loss, loss, dx, x.first_rows(n_targets), head.W, dW, dW}, 2 * n_targets);
  cost.flops = n_products * product(n_targets, head.W.rows, head.W.cols);
  return cost;
}

OpCost cost_of_sum_of_squares(const Tensor& block_sums, const Tensor& x) {
  return moves({block_sums, x});
}

OpCost cost_of_clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums) {
  return moves({state, loss, block_sums});
}

OpCost cost_of_adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g) {
  return moves({p, p, m, m, v, v, g});
}

OpCost cost_of_checksum(const Tensor& sum, const Tensor& x) {
  return moves({sum, sum, x});
}

}  // namespace utrain
