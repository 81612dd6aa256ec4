// out_i = sum_j P_ij v_j, P_i = softmax over the visible keys of scale * q_i k_j
//   Vaswani et al. 2017, arXiv:1706.03762
//   q, out, dout [N, Hq*D] T   k, v [N, Hkv*D] T   qkv, dqkv [N, (Hq + 2 Hkv)*D] T
//   lse, delta [N, Hq] T
//   forward: out =, lse = log of the softmax's denominator.  backward: dqkv =,
//   delta = sum(dout * out).
//   Query i sees the keys j of its document with 0 <= i - j < window (0 = all). No T x T matrix:
//   blocks of queries meet blocks of keys with a running maximum (Milakov & Gimelshein 2018,
//   arXiv:1805.02867); the backward pass makes P again from lse (Dao et al. 2022,
//   arXiv:2205.14135). Sums in T, in the order of the blocks; every output belongs to one thread.
#pragma once

#include <vector>

#include "backend.h"
#include "cpu/exp.h"
#include "cpu/matmul.h"
#include "cpu/view.h"

namespace utrain::cpu {

inline constexpr int64_t kQueryBlock = 64, kKeyBlock = 128;

struct RowRange {
  int64_t begin = 0, end = 0;
};

// One thread's block of scores.
template <class T>
struct ScoreBlock {
  alignas(64) T data[kQueryBlock * kKeyBlock];
  View<T> view(int64_t rows, int64_t cols) { return {data, rows, cols, kKeyBlock}; }
};

inline std::vector<RowRange> documents_of(const TokenBatch& batch) {
  std::vector<RowRange> documents;
  for (int64_t n = 0; n < batch.n_rows; n = documents.back().end) {
    ASSERT(batch.begin[n] == n && batch.end[n] > n && batch.end[n] <= batch.n_rows);
    documents.push_back({n, batch.end[n]});
  }
  return documents;
}

// The keys that query i sees: [begin, end).
inline RowRange visible_keys(int64_t i, RowRange document, int64_t window) {
  return {window > 0 ? std::max(document.begin, i - window + 1) : document.begin, i + 1};
}

// Of those, the ones inside a block of keys, counted from its first; begin = end where there are
// none.
inline RowRange visible_in_block(int64_t i, RowRange document, int64_t window, RowRange block) {
  const RowRange keys = visible_keys(i, document, window);
  const int64_t begin = std::clamp(keys.begin, block.begin, block.end);
  const int64_t end = std::min(keys.end, block.end);
  return {begin - block.begin, std::max(begin, end) - block.begin};
}

// x = exp(scale * x - shift) on [visible), 0 elsewhere in [0, n). Returns their sum.
template <class T, class Shift>
T exp_row(T* x, RowRange visible, int64_t n, Real<T> scale, Shift shift) {
  std::fill(x, x + visible.begin, T(0));
  std::fill(x + visible.end, x + n, T(0));
  T sum = 0;
  if constexpr (is_real<T>) {
#pragma omp simd reduction(+ : sum)
    for (int64_t j = visible.begin; j < visible.end; ++j) {
      x[j] = exp_of(x[j] * scale - shift);
      sum += x[j];
    }
  } else {
    for (int64_t j = visible.begin; j < visible.end; ++j) {
      x[j] = exp_of(x[j] * scale - shift);
      sum += x[j];
    }
  }
  return sum;
}

// One head's operands for one document: whole columns of the pass, rows counted in the pass.
template <class T>
struct AttentionHead {
  View<T> q, k, v;
  RowRange document;
  int64_t window = 0;
  Real<T> scale = 0;
};

// out and lse of the queries [queries) of a head.
template <class T>
void attend(View<T> out, View<T> lse, const AttentionHead<T>& head, RowRange queries,
            ScoreBlock<T>& block) {
  const int64_t n = queries.end - queries.begin, D = head.q.cols;
  const View<T> q = head.q.row_range(queries.begin, n), out_block = out.row_range(queries.begin, n);
  const int64_t first = visible_keys(queries.begin, head.document, head.window).begin;
  Real<T> largest[kQueryBlock];
  T sum[kQueryBlock];
  std::fill_n(largest, n, -std::numeric_limits<Real<T>>::infinity());
  std::fill_n(sum, n, T(0));

  for (int64_t begin = first; begin < queries.end; begin += kKeyBlock) {
    const RowRange keys{begin, std::min(begin + kKeyBlock, queries.end)};
    const int64_t n_keys = keys.end - keys.begin;
    const View<T> scores = block.view(n, n_keys);
    matmul_nt(scores, q, head.k.row_range(keys.begin, n_keys));
    for (int64_t i = 0; i < n; ++i) {
      const RowRange visible =
          visible_in_block(queries.begin + i, head.document, head.window, keys);
      T* row = scores.row(i);
      if (visible.begin == visible.end) {
        std::fill_n(row, n_keys, T(0));
        continue;
      }
      // The shift is a real constant, also for complex T: it cancels, so the result stays analytic.
      const Real<T> found = head.scale * max_of(row + visible.begin, visible.end - visible.begin);
      const Real<T> shift = std::max(largest[i], found);
      const Real<T> shrink = exp_of(largest[i] - shift);
      largest[i] = shift;
      sum[i] = sum[i] * shrink + exp_row(row, visible, n_keys, head.scale, shift);
      if (begin > first && shrink != Real<T>(1)) scale_row(out_block.row(i), shrink, D);
    }
    matmul_nn(out_block, scores, head.v.row_range(keys.begin, n_keys), T(1),
              T(begin > first ? 1 : 0));
  }
  for (int64_t i = 0; i < n; ++i) {
    scale_row(out_block.row(i), T(1) / sum[i], D);
    lse.row(queries.begin + i)[0] = largest[i] + std::log(sum[i]);
  }
}

inline void check_shape(const AttentionShape& shape) {
  ASSERT(shape.D > 0 && shape.Hkv > 0 && shape.Hq % shape.Hkv == 0 && shape.window >= 0);
}

template <class T>
void attention_forward(View<T> out, View<T> lse, View<T> q, View<T> k, View<T> v,
                       const TokenBatch& batch, const AttentionShape& shape) {
  const int64_t N = batch.n_rows, D = shape.D, heads_per_key = shape.Hq / shape.Hkv;
  check_shape(shape);
  ASSERT(q.is(N, shape.Hq * D) && out.is(N, shape.Hq * D) && lse.is(N, shape.Hq));
  ASSERT(k.is(N, shape.Hkv * D) && v.is(N, shape.Hkv * D));
  struct Block {
    RowRange document, queries;
  };
  std::vector<Block> blocks;
  for (const RowRange& document : documents_of(batch)) {
    for (int64_t i = document.begin; i < document.end; i += kQueryBlock) {
      blocks.push_back({document, {i, std::min(i + kQueryBlock, document.end)}});
    }
  }
  const int64_t n_blocks = static_cast<int64_t>(blocks.size());
#pragma omp parallel
  {
    ScoreBlock<T> scores;
    // Late queries see more keys: blocks are dealt out as threads come free.
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t h = 0; h < shape.Hq; ++h) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const int64_t key_head = h / heads_per_key;
        const AttentionHead<T> head{q.columns(h * D, D),
                                    k.columns(key_head * D, D),
                                    v.columns(key_head * D, D),
                                    blocks[b].document,
                                    shape.window,
                                    static_cast<Real<T>>(shape.scale)};
        attend(out.columns(h * D, D), lse.columns(h, 1), head, blocks[b].queries, scores);
      }
    }
  }
}

// What the backward pass reads and writes of one query head.
template <class T>
struct AttentionGradient {
  View<T> dq, dk, dv;
  View<T> dout, lse, delta;
};

// Adds one block of queries against one block of keys to dq, dk, dv.
template <class T>
void attend_backward(const AttentionGradient<T>& gradient, const AttentionHead<T>& head,
                     RowRange queries, RowRange keys, ScoreBlock<T>& p_block,
                     ScoreBlock<T>& ds_block) {
  const int64_t n = queries.end - queries.begin, n_keys = keys.end - keys.begin;
  const View<T> q = head.q.row_range(queries.begin, n), k = head.k.row_range(keys.begin, n_keys);
  const View<T> dout = gradient.dout.row_range(queries.begin, n);
  const View<T> p = p_block.view(n, n_keys), ds = ds_block.view(n, n_keys);
  matmul_nt(p, q, k);
  matmul_nt(ds, dout, head.v.row_range(keys.begin, n_keys));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = queries.begin + i;
    T *p_i = p.row(i), *ds_i = ds.row(i);
    exp_row(p_i, visible_in_block(row, head.document, head.window, keys), n_keys, head.scale,
            gradient.lse.row(row)[0]);
    const T delta = gradient.delta.row(row)[0];
#pragma omp simd
    for (int64_t j = 0; j < n_keys; ++j) ds_i[j] = p_i[j] * (ds_i[j] - delta) * head.scale;
  }
  matmul_tn(gradient.dv.row_range(keys.begin, n_keys), p, dout, T(1), T(1));
  matmul_tn(gradient.dk.row_range(keys.begin, n_keys), ds, q, T(1), T(1));
  matmul_nn(gradient.dq.row_range(queries.begin, n), ds, k, T(1), T(1));
}

template <class T>
void attention_backward(View<T> dqkv, View<T> delta, View<T> dout, View<T> out, View<T> lse,
                        View<T> qkv, const TokenBatch& batch, const AttentionShape& shape) {
  const int64_t N = batch.n_rows, D = shape.D, Hq = shape.Hq, Hkv = shape.Hkv;
  const int64_t heads_per_key = Hq / Hkv;
  check_shape(shape);
  ASSERT(qkv.is(N, (Hq + 2 * Hkv) * D) && dqkv.is(N, qkv.cols) && dout.is(N, Hq * D));
  ASSERT(out.is(N, Hq * D) && lse.is(N, Hq) && delta.is(N, Hq));
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; ++n) {
    std::fill_n(dqkv.row(n), dqkv.cols, T(0));
    for (int64_t h = 0; h < Hq; ++h) {
      delta.row(n)[h] = dot(dout.row(n) + h * D, out.row(n) + h * D, D);
    }
  }
  const std::vector<RowRange> documents = documents_of(batch);
  const int64_t n_documents = static_cast<int64_t>(documents.size());
#pragma omp parallel
  {
    ScoreBlock<T> p, ds;
    // The query heads of one key head add to the same dk and dv: one thread takes them all, in
    // order.
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t d = 0; d < n_documents; ++d) {
      for (int64_t key_head = 0; key_head < Hkv; ++key_head) {
        const int64_t k_column = (Hq + key_head) * D, v_column = (Hq + Hkv + key_head) * D;
        const RowRange document = documents[d];
        for (int64_t h = key_head * heads_per_key; h < (key_head + 1) * heads_per_key; ++h) {
          const AttentionHead<T> head{qkv.columns(h * D, D),
                                      qkv.columns(k_column, D),
                                      qkv.columns(v_column, D),
                                      document,
                                      shape.window,
                                      static_cast<Real<T>>(shape.scale)};
          const AttentionGradient<T> gradient{dqkv.columns(h * D, D),    dqkv.columns(k_column, D),
                                              dqkv.columns(v_column, D), dout.columns(h * D, D),
                                              lse.columns(h, 1),         delta.columns(h, 1)};
          for (int64_t i = document.begin; i < document.end; i += kQueryBlock) {
            const RowRange queries{i, std::min(i + kQueryBlock, document.end)};
            const int64_t first = visible_keys(i, document, shape.window).begin;
            for (int64_t j = first; j < queries.end; j += kKeyBlock) {
              attend_backward(gradient, head, queries, {j, std::min(j + kKeyBlock, queries.end)}, p,
                              ds);
            }
          }
        }
      }
    }
  }
}

}  // namespace utrain::cpu
