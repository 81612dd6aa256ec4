// loss += sum over targets of (log sum_v exp(logit_v) - logit_target), logits = x[row] W'
//   x, dx [N, C] T   W, dW [V, C] T   loss [1, 1] double (T where wider)
//   scratch: one chunk of logits, the rows of x it comes from, a loss for each row
//   g = dloss * (softmax - onehot), dloss = its value * its scale;  dx = g W on rows with a target,
//   0 on the others;  dW += g' x[row], nothing where empty. No gradient at all where dx is empty.
//   Requires target rows ascending and without repetition.
//   Softmax sums: blocks of 512 in T, blocks and loss in double, targets added in order.
#pragma once

#include "backend.h"
#include "cpu/exp.h"
#include "cpu/matmul.h"
#include "cpu/view.h"

namespace utrain::cpu {

// x = exp(x - shift); returns the sum.
template <class T>
Wide<T> exp_row_sum(T* x, int64_t n, Real<T> shift) {
  constexpr int64_t block = 512;
  Wide<T> sum = 0;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(begin + block, n);
    T block_sum = 0;
    if constexpr (is_real<T>) {
#pragma omp simd reduction(+ : block_sum)
      for (int64_t i = begin; i < end; ++i) {
        x[i] = exp_of(x[i] - shift);
        block_sum += x[i];
      }
    } else {
      for (int64_t i = begin; i < end; ++i) {
        x[i] = exp_of(x[i] - shift);
        block_sum += x[i];
      }
    }
    sum += block_sum;
  }
  return sum;
}

// In place: logits become their gradient. Returns the row's loss.
template <class T>
Wide<T> cross_entropy_row(T* logits, int64_t V, int64_t target, double dloss) {
  // The shift is a real constant, also for complex T: it cancels.
  const Real<T> shift = max_of(logits, V);
  const Wide<T> target_logit = logits[target];
  const Wide<T> sum = exp_row_sum(logits, V, shift);
  scale_row(logits, static_cast<T>(dloss / sum), V);
  logits[target] -= static_cast<T>(dloss);
  return static_cast<double>(shift) + std::log(sum) - target_logit;
}

inline double value_of(const LossFactor& dloss) {
  if (dloss.scale.empty()) return dloss.value;
  const View<double> scale(dloss.scale);
  ASSERT(scale.is(1, 1));
  return dloss.value * scale.data[0];
}

template <class T>
void cross_entropy(View<Wide<T>> loss, View<T> dx, View<T> x, const Head& head,
                   const TokenBatch& batch, const LossFactor& factor, const LossScratch& scratch) {
  const View<T> W = head.W, dW = head.dW;
  const View<T> logits = scratch.logits, gathered = scratch.x_rows;
  const View<Wide<T>> losses = scratch.losses;
  const int64_t M = batch.n_targets, C = x.cols, V = W.rows;
  const double dloss = value_of(factor);
  ASSERT(loss.is(1, 1) && x.rows == batch.n_rows && W.cols == C && logits.cols == V);
  ASSERT(dx.empty() || dx.is(x.rows, C));
  ASSERT(dW.empty() || dW.is(V, C));
  ASSERT(M == 0 || logits.rows > 0);
  ASSERT(gathered.is(logits.rows, C) && losses.is(1, logits.rows));
  ASSERT(all_below(batch.target_rows, M, x.rows) && all_below(batch.targets, M, V));
  if (!dx.empty()) {
    for (int64_t n = 0; n < x.rows; ++n) std::fill_n(dx.row(n), C, T(0));
  }
  const int64_t chunk = std::min(logits.rows, M);
  for (int64_t begin = 0; begin < M; begin += chunk) {
    const int64_t n_rows = std::min(chunk, M - begin);
    const int32_t *rows = batch.target_rows + begin, *targets = batch.targets + begin;
    const View<T> x_rows = gathered.row_range(0, n_rows);
    const View<T> chunk_logits = logits.row_range(0, n_rows);
    for (int64_t i = 0; i < n_rows; ++i) std::copy_n(x.row(rows[i]), C, x_rows.row(i));
    matmul_nt(chunk_logits, x_rows, W);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n_rows; ++i) {
      losses.data[i] = cross_entropy_row(chunk_logits.row(i), V, targets[i], dloss);
    }
    for (int64_t i = 0; i < n_rows; ++i) loss.data[0] += losses.data[i];
    if (dx.empty()) continue;
    if (!dW.empty()) matmul_tn(dW, chunk_logits, x_rows, T(1), T(1));
    matmul_nn(x_rows, chunk_logits, W);
    for (int64_t i = 0; i < n_rows; ++i) std::copy_n(x_rows.row(i), C, dx.row(rows[i]));
  }
}

}  // namespace utrain::cpu
