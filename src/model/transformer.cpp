#include "model/transformer.h"

#include <algorithm>
#include <cmath>

#include "model/rope_table.h"

namespace utrain {

namespace {

// A chunk of logits: large enough for a product at full speed, small beside the backward's scratch.
constexpr int64_t kLogitsBytes = int64_t{256} << 20;

// Rows that start on 16 bytes, whatever the vocabulary: products read vectors.
int64_t padded_columns(int64_t cols, DType dtype) {
  const int64_t n = std::max<int64_t>(1, 16 / size_of(dtype));
  return (cols + n - 1) / n * n;
}

}  // namespace

Transformer::Transformer(const Architecture& architecture, const ModelParts& parts,
                         Activations& activations, Backend& backend, Arena& arena,
                         const Sizes& sizes)
    : architecture_(architecture),
      weights_(parts.weights),
      weight_gradients_(parts.weight_gradients),
      adapters_(parts.adapters),
      residency_(parts.residency),
      activations_(activations),
      backend_(backend),
      dropout_p_(static_cast<float>(sizes.dropout)) {
  declare_scratch(arena, sizes.n_positions, sizes.dropout);
}

void Transformer::declare_scratch(Arena& arena, int64_t n_positions, double dropout) {
  const Architecture& a = architecture_;
  const int64_t N = activations_.capacity(), C = a.hidden_size, F = a.intermediate_size;
  const int64_t q = a.n_heads * a.head_dim, qkv = (a.n_heads + 2 * a.n_kv_heads) * a.head_dim;
  const DType T = backend_.dtype();
  const auto scratch = [&](const char* name, int64_t rows, int64_t cols, Lifetime lifetime,
                           DType dtype) {
    return arena.declare(name, dtype, rows, cols, MemoryClass::workspace, lifetime);
  };
  int64_t columns = 1;
  for (const Group group : kGroups) columns = std::max(columns, adapters_.columns(group));
  logits_rows_ = std::clamp<int64_t>(kLogitsBytes / (a.vocab_size * size_of(T)), 1, N);
  ids_.cos_sin = scratch("RoPE table", n_positions, a.head_dim, Lifetime::run, DType::f32);
  ids_.dropped = scratch("drop(x)", dropout > 0.0 ? N : 0, std::max({C, q, F}), Lifetime::run, T);
  ids_.dxa = scratch("gradient of x A'", N, columns, Lifetime::run, T);
  ids_.dhidden = scratch("gradient of hidden", N, C, Lifetime::run, T);
  ids_.normed = scratch("normed", N, C, Lifetime::run, T);
  ids_.branch = scratch("branch", N, C, Lifetime::forward, T);
  ids_.act = scratch("act", N, F, Lifetime::forward, T);
  ids_.logits =
      scratch("logits chunk", logits_rows_, padded_columns(a.vocab_size, T), Lifetime::head, T);
  ids_.target_rows = scratch("target rows", logits_rows_, C, Lifetime::head, T);
  ids_.losses = scratch("losses", 1, logits_rows_, Lifetime::head, backend_.loss_dtype());
  ids_.dnormed = scratch("gradient of normed", N, C, Lifetime::run, T);
  ids_.dact = scratch("gradient of act", N, F, Lifetime::backward, T);
  ids_.act_again = scratch("act again", N, F, Lifetime::backward, T);
  ids_.normed_again = scratch("normed again", N, C, Lifetime::backward, T);
  ids_.dattention = scratch("gradient of attention", N, q, Lifetime::backward, T);
  ids_.dqkv = scratch("gradient of qkv", N, qkv, Lifetime::backward, T);
  ids_.column_sums =
      scratch("sums of columns, in parts", weight_gradients_ == nullptr ? 0 : kColumnParts,
              std::max({C, qkv, 2 * F}), Lifetime::run, backend_.trainable_dtype());
  ids_.delta =
      scratch("rowsum(dout * out)", N, a.n_heads, Lifetime::backward, backend_.trainable_dtype());
}

void Transformer::bind(const Arena& arena) {
  Scratch& s = scratch_;
  s.cos_sin = arena[ids_.cos_sin];
  s.dropped = arena[ids_.dropped];
  s.dxa = arena[ids_.dxa];
  s.dhidden = arena[ids_.dhidden];
  s.normed = arena[ids_.normed];
  s.branch = arena[ids_.branch];
  s.act = arena[ids_.act];
  s.loss = {arena[ids_.logits].columns(0, architecture_.vocab_size), arena[ids_.target_rows],
            arena[ids_.losses]};
  s.dnormed = arena[ids_.dnormed];
  s.dact = arena[ids_.dact];
  s.act_again = arena[ids_.act_again];
  s.normed_again = arena[ids_.normed_again];
  s.dattention = arena[ids_.dattention];
  s.dqkv = arena[ids_.dqkv];
  s.delta = arena[ids_.delta];
  if (weight_gradients_ != nullptr) s.column_sums = arena[ids_.column_sums];
  const std::vector<float> table =
      rope_table(architecture_.rope, architecture_.head_dim, s.cos_sin.rows);
  backend_.upload(s.cos_sin.data, table.data(), static_cast<int64_t>(table.size() * sizeof(float)));
}

void Transformer::train_mode(uint64_t seed, int64_t epoch) {
  dropout_ = {dropout_p_, seed, epoch};
  trains_ = true;
}

void Transformer::eval_mode() {
  dropout_ = {};
  trains_ = false;
}

Linear Transformer::linear(int64_t l, Group group) const {
  const LayerWeights& w = weights_.layer(l);
  const auto g = static_cast<size_t>(group);
  Linear linear{w.W[g], w.bias[g], adapters_.of(l, group), adapters_.options().r,
                static_cast<float>(adapters_.options().scaling())};
  if (weight_gradients_ != nullptr) {
    linear.dW = weight_gradients_->layer(l).W[g];
    linear.dbias = weight_gradients_->layer(l).bias[g];
  }
  return linear;
}

Tensor Transformer::slot(int64_t l, Slot s, const TokenBatch& batch) const {
  return activations_(0, l, s, batch.n_rows);
}

bool Transformer::is_trained(Group group) const {
  return weight_gradients_ != nullptr || adapters_.columns(group) > 0;
}

Tensor Transformer::gradient(int64_t l, Tensor LayerWeights::*weight) const {
  return weight_gradients_ == nullptr ? Tensor{} : weight_gradients_->layer(l).*weight;
}

LinearContext Transformer::context(const TokenBatch& batch) const {
  LinearContext c{batch, dropout_, {}, scratch_.dxa.first_rows(batch.n_rows)};
  if (dropout_.p > 0.0f) c.dropped = scratch_.dropped.first_rows(batch.n_rows);
  c.column_sums = scratch_.column_sums;
  return c;
}

AttentionShape Transformer::attention_shape(int64_t l) const {
  const Architecture& a = architecture_;
  return {a.n_heads, a.n_kv_heads, a.head_dim, 1.0 / std::sqrt(static_cast<double>(a.head_dim)),
          a.window[static_cast<size_t>(l)]};
}

void Transformer::linear_forward(int64_t l, Group group, const Tensor& y, const Tensor& x,
                                 const TokenBatch& batch) {
  backend_.linear_forward(y, slot(l, xa_slot(group), batch), x, linear(l, group), context(batch));
}

void Transformer::linear_backward(int64_t l, Group group, const Tensor& dx, const Tensor& dy,
                                  const Tensor& x, const TokenBatch& batch) {
  backend_.linear_backward(dx, dy, x, slot(l, xa_slot(group), batch), linear(l, group),
                           context(batch));
}

void Transformer::forward(const TokenBatch& batch) {
  const Architecture& a = architecture_;
  ASSERT(batch.n_rows > 0 && batch.n_rows <= activations_.capacity());
  const Tensor normed = scratch_.normed.first_rows(batch.n_rows);
  const Tensor branch = scratch_.branch.first_rows(batch.n_rows);
  residency_.get(a.n_layers);
  backend_.embedding_forward(slot(0, Slot::hidden, batch), weights_.ends().embedding, batch);
  residency_.release(a.n_layers);
  for (int64_t l = 0; l < a.n_layers; ++l) {
    residency_.get(l);
    const LayerWeights& w = weights_.layer(l);
    const Tensor h = slot(l, Slot::hidden, batch), rstd = slot(l, Slot::norm_rstd, batch);
    if (l == 0) {
      backend_.rmsnorm_forward(normed, rstd, h, w.input_norm, a.norm_eps);
    } else {  // h = h_mid + down(...) of the layer below
      const Tensor h_mid = slot(l - 1, Slot::hidden_mid, batch);
      backend_.residual_rmsnorm_forward(h, normed, rstd, h_mid, branch, w.input_norm, a.norm_eps);
    }
    attention_block_forward(l, batch);
    mlp_block_forward(l, batch);
    if (trains_) activations_.forward_done(0, l, batch.n_rows);
    residency_.release(l);
  }
  residency_.get(a.n_layers);
  backend_.residual_rmsnorm_forward(slot(a.n_layers, Slot::hidden, batch), normed,
                                    slot(a.n_layers, Slot::norm_rstd, batch),
                                    slot(a.n_layers - 1, Slot::hidden_mid, batch), branch,
                                    weights_.ends().final_norm, a.norm_eps);
  residency_.release(a.n_layers);
}

void Transformer::forward_without_rows() {
  const int64_t L = architecture_.n_layers;
  residency_.get(L);
  residency_.release(L);
  for (int64_t l = 0; l <= L; ++l) {
    residency_.get(l);
    residency_.release(l);
  }
}

// normed -> h_mid = h + o(attention), normed = norm(h_mid)
void Transformer::attention_block_forward(int64_t l, const TokenBatch& batch) {
  const Architecture& a = architecture_;
  const LayerWeights& w = weights_.layer(l);
  const int64_t D = a.head_dim, q = a.n_heads * D, kv = a.n_kv_heads * D;
  const Tensor normed = scratch_.normed.first_rows(batch.n_rows);
  const Tensor branch = scratch_.branch.first_rows(batch.n_rows);
  const Tensor qkv = slot(l, Slot::qkv, batch), attention = slot(l, Slot::attention, batch);
  if (a.qk_norm) {
    const Tensor raw = slot(l, Slot::qkv_raw, batch), rstd = slot(l, Slot::qk_rstd, batch);
    linear_forward(l, Group::qkv, raw, normed, batch);
    backend_.rmsnorm_forward(qkv.columns(0, q), rstd.columns(0, a.n_heads), raw.columns(0, q),
                             w.q_norm, a.norm_eps);
    backend_.rmsnorm_forward(qkv.columns(q, kv), rstd.columns(a.n_heads, a.n_kv_heads),
                             raw.columns(q, kv), w.k_norm, a.norm_eps);
    backend_.convert(qkv.columns(q + kv, kv), raw.columns(q + kv, kv));
  } else {
    linear_forward(l, Group::qkv, qkv, normed, batch);
  }
  backend_.rope_forward(qkv.columns(0, q + kv), scratch_.cos_sin, D, batch);
  backend_.attention_forward(attention, slot(l, Slot::lse, batch), qkv.columns(0, q),
                             qkv.columns(q, kv), qkv.columns(q + kv, kv), batch,
                             attention_shape(l));
  linear_forward(l, Group::o, branch, attention, batch);
  backend_.residual_rmsnorm_forward(slot(l, Slot::hidden_mid, batch), normed,
                                    slot(l, Slot::mid_rstd, batch), slot(l, Slot::hidden, batch),
                                    branch, w.post_attention_norm, a.norm_eps);
}

// normed -> branch = down(swiglu(gate_up(normed))), added to h_mid by the norm that follows
void Transformer::mlp_block_forward(int64_t l, const TokenBatch& batch) {
  const Tensor gate_up = slot(l, Slot::gate_up, batch), act = scratch_.act.first_rows(batch.n_rows);
  linear_forward(l, Group::gate_up, gate_up, scratch_.normed.first_rows(batch.n_rows), batch);
  backend_.swiglu_forward(act, gate_up);
  linear_forward(l, Group::down, scratch_.branch.first_rows(batch.n_rows), act, batch);
}

void Transformer::loss(const Tensor& loss, const TokenBatch& batch) {
  residency_.get(architecture_.n_layers);
  backend_.cross_entropy(loss, {}, scratch_.normed.first_rows(batch.n_rows), {weights_.ends().head},
                         batch, {}, scratch_.loss);
  residency_.release(architecture_.n_layers);
}

void Transformer::loss_without_rows() {
  residency_.get(architecture_.n_layers);
  residency_.release(architecture_.n_layers);
}

Tensor Transformer::logits(int64_t first, int64_t n) {
  const Tensor out = scratch_.loss.logits.first_rows(n);
  Linear head;
  head.W = weights_.ends().head;
  residency_.get(architecture_.n_layers);
  backend_.linear_forward(out, {}, scratch_.normed.row_range(first, n), head, {});
  residency_.release(architecture_.n_layers);
  return out;
}

void Transformer::loss_and_backward(const Tensor& loss, const TokenBatch& batch,
                                    const LossFactor& dloss) {
  const int64_t L = architecture_.n_layers;
  const Tensor dhidden = scratch_.dhidden.first_rows(batch.n_rows),
               dnormed = scratch_.dnormed.first_rows(batch.n_rows);
  const EndWeights dends = weight_gradients_ == nullptr ? EndWeights{} : weight_gradients_->ends();
  residency_.get(L);
  residency_.begin_gradients(L);
  backend_.cross_entropy(loss, dnormed, scratch_.normed.first_rows(batch.n_rows),
                         {weights_.ends().head, dends.head}, batch, dloss, scratch_.loss);
  backend_.rmsnorm_backward(dhidden, dends.final_norm, dnormed, slot(L, Slot::hidden, batch),
                            slot(L, Slot::norm_rstd, batch), weights_.ends().final_norm, 0.0f,
                            scratch_.column_sums);
  residency_.release(L);
  for (int64_t l = L - 1; l >= 0; --l) {
    residency_.get(l);
    residency_.begin_gradients(l);
    activations_.backward_begin(0, l, batch.n_rows);
    recompute(l, batch);
    mlp_block_backward(l, batch);
    if (trained_below(l, Group::gate_up)) attention_block_backward(l, batch);
    residency_.end_gradients(l);
    residency_.release(l);
  }
  if (!dends.embedding.empty()) backend_.embedding_backward(dends.embedding, dhidden, batch);
  residency_.end_gradients(L);
}

void Transformer::backward_without_rows() {
  const int64_t L = architecture_.n_layers;
  residency_.get(L);
  residency_.begin_gradients(L);
  residency_.release(L);
  for (int64_t l = L - 1; l >= 0; --l) {
    residency_.get(l);
    residency_.begin_gradients(l);
    residency_.end_gradients(l);
    residency_.release(l);
  }
  residency_.end_gradients(L);
}

bool Transformer::trained_below(int64_t l, Group group) const {
  if (weight_gradients_ != nullptr || l > 0) return true;  // all layers have the same adapters
  return std::any_of(kGroups.begin(), kGroups.end(),
                     [&](Group g) { return g < group && adapters_.columns(g) > 0; });
}

// Fills the slots that the layer's policy did not keep, with the very operations of the forward
// pass.
void Transformer::recompute(int64_t l, const TokenBatch& batch) {
  const Recompute policy = activations_.policy(l);
  if (policy == Recompute::keep) return;
  const LayerWeights& w = weights_.layer(l);
  const Tensor normed = scratch_.normed.first_rows(batch.n_rows);
  if (policy == Recompute::block || policy == Recompute::offload) {
    backend_.rmsnorm_forward(normed, slot(l, Slot::norm_rstd, batch), slot(l, Slot::hidden, batch),
                             w.input_norm, architecture_.norm_eps);
    attention_block_forward(l, batch);
  } else {
    backend_.rmsnorm_forward(normed, slot(l, Slot::mid_rstd, batch),
                             slot(l, Slot::hidden_mid, batch), w.post_attention_norm,
                             architecture_.norm_eps);
  }
  linear_forward(l, Group::gate_up, slot(l, Slot::gate_up, batch), normed, batch);
}

// dhidden = gradient of h'' -> gradient of h_mid
void Transformer::mlp_block_backward(int64_t l, const TokenBatch& batch) {
  const Architecture& a = architecture_;
  const LayerWeights& w = weights_.layer(l);
  const int64_t N = batch.n_rows;
  const Tensor dhidden = scratch_.dhidden.first_rows(N), dnormed = scratch_.dnormed.first_rows(N);
  const Tensor act = scratch_.act_again.first_rows(N), dact = scratch_.dact.first_rows(N);
  const Tensor normed = scratch_.normed_again.first_rows(N),
               gate_up = slot(l, Slot::gate_up, batch);
  const Tensor h_mid = slot(l, Slot::hidden_mid, batch), rstd = slot(l, Slot::mid_rstd, batch);
  if (is_trained(Group::down)) backend_.swiglu_forward(act, gate_up);
  linear_backward(l, Group::down, trained_below(l, Group::down) ? dact : Tensor{}, dhidden, act,
                  batch);
  if (!trained_below(l, Group::down)) return;
  backend_.swiglu_backward(gate_up, dact, gate_up);
  if (is_trained(Group::gate_up)) {
    backend_.rmsnorm_forward(normed, rstd, h_mid, w.post_attention_norm, a.norm_eps);
  }
  linear_backward(l, Group::gate_up, trained_below(l, Group::gate_up) ? dnormed : Tensor{}, gate_up,
                  normed, batch);
  if (!trained_below(l, Group::gate_up)) return;
  backend_.rmsnorm_backward(dhidden, gradient(l, &LayerWeights::post_attention_norm), dnormed,
                            h_mid, rstd, w.post_attention_norm, 1.0f, scratch_.column_sums);
}

// dhidden = gradient of h_mid -> gradient of h
void Transformer::attention_block_backward(int64_t l, const TokenBatch& batch) {
  const Architecture& a = architecture_;
  const LayerWeights& w = weights_.layer(l);
  const int64_t N = batch.n_rows, D = a.head_dim, q = a.n_heads * D, kv = a.n_kv_heads * D;
  const Tensor dhidden = scratch_.dhidden.first_rows(N), dnormed = scratch_.dnormed.first_rows(N);
  const Tensor normed = scratch_.normed_again.first_rows(N);
  const Tensor attention = slot(l, Slot::attention, batch),
               dattention = scratch_.dattention.first_rows(N);
  const Tensor dqkv = scratch_.dqkv.first_rows(N), h = slot(l, Slot::hidden, batch);
  const Tensor rstd = slot(l, Slot::norm_rstd, batch);
  linear_backward(l, Group::o, trained_below(l, Group::o) ? dattention : Tensor{}, dhidden,
                  attention, batch);
  if (!trained_below(l, Group::o)) return;
  backend_.attention_backward(dqkv, scratch_.delta.first_rows(N), dattention, attention,
                              slot(l, Slot::lse, batch), slot(l, Slot::qkv, batch), batch,
                              attention_shape(l));
  backend_.rope_backward(dqkv.columns(0, q + kv), scratch_.cos_sin, D, batch);
  if (a.qk_norm) {
    const Tensor raw = slot(l, Slot::qkv_raw, batch), qk_rstd = slot(l, Slot::qk_rstd, batch);
    backend_.rmsnorm_backward(dqkv.columns(0, q), gradient(l, &LayerWeights::q_norm),
                              dqkv.columns(0, q), raw.columns(0, q), qk_rstd.columns(0, a.n_heads),
                              w.q_norm, 0.0f, scratch_.column_sums);
    backend_.rmsnorm_backward(dqkv.columns(q, kv), gradient(l, &LayerWeights::k_norm),
                              dqkv.columns(q, kv), raw.columns(q, kv),
                              qk_rstd.columns(a.n_heads, a.n_kv_heads), w.k_norm, 0.0f,
                              scratch_.column_sums);
  }
  if (is_trained(Group::qkv)) backend_.rmsnorm_forward(normed, rstd, h, w.input_norm, a.norm_eps);
  linear_backward(l, Group::qkv, trained_below(l, Group::qkv) ? dnormed : Tensor{}, dqkv, normed,
                  batch);
  if (!trained_below(l, Group::qkv)) return;
  backend_.rmsnorm_backward(dhidden, gradient(l, &LayerWeights::input_norm), dnormed, h, rstd,
                            w.input_norm, 1.0f, scratch_.column_sums);
}

}  // namespace utrain
