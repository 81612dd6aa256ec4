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
  for (int64_t pass = 0; pass < activations_.n_passes(); ++pass) {
    ids_.dhidden.push_back(scratch("gradient of hidden", N, C, Lifetime::run, T));
    ids_.normed.push_back(scratch("normed", N, C, Lifetime::run, T));
    ids_.branch.push_back(scratch("branch", N, C, Lifetime::forward, T));
  }
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
  for (size_t pass = 0; pass < ids_.normed.size(); ++pass) {
    lanes_.push_back({static_cast<int64_t>(pass),
                      {},
                      arena[ids_.normed[pass]],
                      arena[ids_.branch[pass]],
                      arena[ids_.dhidden[pass]]});
  }
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

std::vector<Transformer::Lane> Transformer::lanes(Passes passes) const {
  ASSERT(passes.size() <= lanes_.size());
  std::vector<Lane> lanes;
  for (const TokenBatch& batch : passes) {
    ASSERT(batch.n_rows > 0 && batch.n_rows <= activations_.capacity());
    const Lane& whole = lanes_[lanes.size()];
    lanes.push_back({whole.index, batch, whole.normed.first_rows(batch.n_rows),
                     whole.branch.first_rows(batch.n_rows),
                     whole.dhidden.first_rows(batch.n_rows)});
  }
  return lanes;
}

Tensor Transformer::slot(int64_t l, Slot s, const Lane& lane) const {
  return activations_(lane.index, l, s, lane.batch.n_rows);
}

bool Transformer::is_trained(Group group) const {
  return weight_gradients_ != nullptr || adapters_.columns(group) > 0;
}

EndWeights Transformer::end_gradients() const {
  return weight_gradients_ == nullptr ? EndWeights{} : weight_gradients_->ends();
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
                                 const Lane& lane) {
  backend_.linear_forward(y, slot(l, xa_slot(group), lane), x, linear(l, group),
                          context(lane.batch));
}

void Transformer::linear_backward(int64_t l, Group group, const Tensor& dx, const Tensor& dy,
                                  const Tensor& x, const Lane& lane) {
  backend_.linear_backward(dx, dy, x, slot(l, xa_slot(group), lane), linear(l, group),
                           context(lane.batch));
}

void Transformer::forward(Passes passes) {
  const int64_t L = architecture_.n_layers;
  const std::vector<Lane> all = lanes(passes);
  residency_.get(L);
  for (const Lane& lane : all)
    backend_.embedding_forward(slot(0, Slot::hidden, lane), weights_.ends().embedding, lane.batch);
  residency_.release(L);
  for (int64_t l = 0; l < L; ++l) {
    residency_.get(l);
    for (const Lane& lane : all) layer_forward(l, lane);
    residency_.release(l);
  }
  residency_.get(L);
  for (const Lane& lane : all) {
    backend_.residual_rmsnorm_forward(slot(L, Slot::hidden, lane), lane.normed,
                                      slot(L, Slot::norm_rstd, lane),
                                      slot(L - 1, Slot::hidden_mid, lane), lane.branch,
                                      weights_.ends().final_norm, architecture_.norm_eps);
  }
  residency_.release(L);
}

void Transformer::layer_forward(int64_t l, const Lane& lane) {
  const Tensor &w = weights_.layer(l).input_norm, h = slot(l, Slot::hidden, lane),
               rstd = slot(l, Slot::norm_rstd, lane);
  if (l == 0) {
    backend_.rmsnorm_forward(lane.normed, rstd, h, w, architecture_.norm_eps);
  } else {  // h = h_mid + down(...) of the layer below
    backend_.residual_rmsnorm_forward(h, lane.normed, rstd, slot(l - 1, Slot::hidden_mid, lane),
                                      lane.branch, w, architecture_.norm_eps);
  }
  attention_block_forward(l, lane);
  mlp_block_forward(l, lane);
  if (trains_) activations_.forward_done(lane.index, l, lane.batch.n_rows);
}

// normed -> h_mid = h + o(attention), normed = norm(h_mid)
void Transformer::attention_block_forward(int64_t l, const Lane& lane) {
  const Architecture& a = architecture_;
  const LayerWeights& w = weights_.layer(l);
  const int64_t D = a.head_dim, q = a.n_heads * D, kv = a.n_kv_heads * D;
  const Tensor &normed = lane.normed, &branch = lane.branch;
  const Tensor qkv = slot(l, Slot::qkv, lane), attention = slot(l, Slot::attention, lane);
  if (a.qk_norm) {
    const Tensor raw = slot(l, Slot::qkv_raw, lane), rstd = slot(l, Slot::qk_rstd, lane);
    linear_forward(l, Group::qkv, raw, normed, lane);
    backend_.rmsnorm_forward(qkv.columns(0, q), rstd.columns(0, a.n_heads), raw.columns(0, q),
                             w.q_norm, a.norm_eps);
    backend_.rmsnorm_forward(qkv.columns(q, kv), rstd.columns(a.n_heads, a.n_kv_heads),
                             raw.columns(q, kv), w.k_norm, a.norm_eps);
    backend_.convert(qkv.columns(q + kv, kv), raw.columns(q + kv, kv));
  } else {
    linear_forward(l, Group::qkv, qkv, normed, lane);
  }
  backend_.rope_forward(qkv.columns(0, q + kv), scratch_.cos_sin, D, lane.batch);
  backend_.attention_forward(attention, slot(l, Slot::lse, lane), qkv.columns(0, q),
                             qkv.columns(q, kv), qkv.columns(q + kv, kv), lane.batch,
                             attention_shape(l));
  linear_forward(l, Group::o, branch, attention, lane);
  backend_.residual_rmsnorm_forward(slot(l, Slot::hidden_mid, lane), normed,
                                    slot(l, Slot::mid_rstd, lane), slot(l, Slot::hidden, lane),
                                    branch, w.post_attention_norm, a.norm_eps);
}

// normed -> branch = down(swiglu(gate_up(normed))), added to h_mid by the norm that follows
void Transformer::mlp_block_forward(int64_t l, const Lane& lane) {
  const Tensor gate_up = slot(l, Slot::gate_up, lane),
               act = scratch_.act.first_rows(lane.batch.n_rows);
  linear_forward(l, Group::gate_up, gate_up, lane.normed, lane);
  backend_.swiglu_forward(act, gate_up);
  linear_forward(l, Group::down, lane.branch, act, lane);
}

void Transformer::loss(const Tensor& loss, Passes passes) {
  residency_.get(architecture_.n_layers);
  for (const Lane& lane : lanes(passes)) {
    backend_.cross_entropy(loss, {}, lane.normed, {weights_.ends().head}, lane.batch, {},
                           scratch_.loss);
  }
  residency_.release(architecture_.n_layers);
}

Tensor Transformer::logits(int64_t first, int64_t n) {
  const Tensor out = scratch_.loss.logits.first_rows(n);
  Linear head;
  head.W = weights_.ends().head;
  residency_.get(architecture_.n_layers);
  backend_.linear_forward(out, {}, lanes_[0].normed.row_range(first, n), head, {});
  residency_.release(architecture_.n_layers);
  return out;
}

void Transformer::loss_and_backward(const Tensor& loss, Passes passes, const LossFactor& dloss) {
  const int64_t L = architecture_.n_layers;
  const std::vector<Lane> all = lanes(passes);
  residency_.get(L);
  residency_.begin_gradients(L);
  for (const Lane& lane : all) head_backward(loss, lane, dloss);
  residency_.release(L);
  for (int64_t l = L - 1; l >= 0; --l) {
    residency_.get(l);
    residency_.begin_gradients(l);
    for (const Lane& lane : all) layer_backward(l, lane);
    residency_.end_gradients(l);
    residency_.release(l);
  }
  const Tensor dembedding = end_gradients().embedding;
  for (const Lane& lane : all) {
    if (!dembedding.empty()) backend_.embedding_backward(dembedding, lane.dhidden, lane.batch);
  }
  residency_.end_gradients(L);
}

// -> dhidden = gradient of the last layer's output
void Transformer::head_backward(const Tensor& loss, const Lane& lane, const LossFactor& dloss) {
  const int64_t L = architecture_.n_layers;
  const Tensor dnormed = scratch_.dnormed.first_rows(lane.batch.n_rows);
  backend_.cross_entropy(loss, dnormed, lane.normed, {weights_.ends().head, end_gradients().head},
                         lane.batch, dloss, scratch_.loss);
  backend_.rmsnorm_backward(lane.dhidden, end_gradients().final_norm, dnormed,
                            slot(L, Slot::hidden, lane), slot(L, Slot::norm_rstd, lane),
                            weights_.ends().final_norm, 0.0f, scratch_.column_sums);
}

// dhidden = gradient of h'' -> gradient of h
void Transformer::layer_backward(int64_t l, const Lane& lane) {
  activations_.backward_begin(lane.index, l, lane.batch.n_rows);
  recompute(l, lane);
  mlp_block_backward(l, lane);
  if (trained_below(l, Group::gate_up)) attention_block_backward(l, lane);
}

bool Transformer::trained_below(int64_t l, Group group) const {
  if (weight_gradients_ != nullptr || l > 0) return true;  // all layers have the same adapters
  return std::any_of(kGroups.begin(), kGroups.end(),
                     [&](Group g) { return g < group && adapters_.columns(g) > 0; });
}

// Fills the slots that the layer's policy did not keep, with the very operations of the forward
// pass.
void Transformer::recompute(int64_t l, const Lane& lane) {
  const Recompute policy = activations_.policy(l);
  if (policy == Recompute::keep) return;
  const LayerWeights& w = weights_.layer(l);
  const Tensor& normed = lane.normed;
  if (policy == Recompute::block || policy == Recompute::offload) {
    backend_.rmsnorm_forward(normed, slot(l, Slot::norm_rstd, lane), slot(l, Slot::hidden, lane),
                             w.input_norm, architecture_.norm_eps);
    attention_block_forward(l, lane);
  } else {
    backend_.rmsnorm_forward(normed, slot(l, Slot::mid_rstd, lane), slot(l, Slot::hidden_mid, lane),
                             w.post_attention_norm, architecture_.norm_eps);
  }
  linear_forward(l, Group::gate_up, slot(l, Slot::gate_up, lane), normed, lane);
}

// dhidden = gradient of h'' -> gradient of h_mid
void Transformer::mlp_block_backward(int64_t l, const Lane& lane) {
  const Architecture& a = architecture_;
  const LayerWeights& w = weights_.layer(l);
  const int64_t N = lane.batch.n_rows;
  const Tensor &dhidden = lane.dhidden, dnormed = scratch_.dnormed.first_rows(N);
  const Tensor act = scratch_.act_again.first_rows(N), dact = scratch_.dact.first_rows(N);
  const Tensor normed = scratch_.normed_again.first_rows(N), gate_up = slot(l, Slot::gate_up, lane);
  const Tensor h_mid = slot(l, Slot::hidden_mid, lane), rstd = slot(l, Slot::mid_rstd, lane);
  if (is_trained(Group::down)) backend_.swiglu_forward(act, gate_up);
  linear_backward(l, Group::down, trained_below(l, Group::down) ? dact : Tensor{}, dhidden, act,
                  lane);
  if (!trained_below(l, Group::down)) return;
  backend_.swiglu_backward(gate_up, dact, gate_up);
  if (is_trained(Group::gate_up)) {
    backend_.rmsnorm_forward(normed, rstd, h_mid, w.post_attention_norm, a.norm_eps);
  }
  linear_backward(l, Group::gate_up, trained_below(l, Group::gate_up) ? dnormed : Tensor{}, gate_up,
                  normed, lane);
  if (!trained_below(l, Group::gate_up)) return;
  backend_.rmsnorm_backward(dhidden, gradient(l, &LayerWeights::post_attention_norm), dnormed,
                            h_mid, rstd, w.post_attention_norm, 1.0f, scratch_.column_sums);
}

// dhidden = gradient of h_mid -> gradient of h
void Transformer::attention_block_backward(int64_t l, const Lane& lane) {
  const Architecture& a = architecture_;
  const LayerWeights& w = weights_.layer(l);
  const int64_t N = lane.batch.n_rows, D = a.head_dim, q = a.n_heads * D, kv = a.n_kv_heads * D;
  const Tensor &dhidden = lane.dhidden, dnormed = scratch_.dnormed.first_rows(N);
  const Tensor normed = scratch_.normed_again.first_rows(N);
  const Tensor attention = slot(l, Slot::attention, lane),
               dattention = scratch_.dattention.first_rows(N);
  const Tensor dqkv = scratch_.dqkv.first_rows(N), h = slot(l, Slot::hidden, lane);
  const Tensor rstd = slot(l, Slot::norm_rstd, lane);
  linear_backward(l, Group::o, trained_below(l, Group::o) ? dattention : Tensor{}, dhidden,
                  attention, lane);
  if (!trained_below(l, Group::o)) return;
  backend_.attention_backward(dqkv, scratch_.delta.first_rows(N), dattention, attention,
                              slot(l, Slot::lse, lane), slot(l, Slot::qkv, lane), lane.batch,
                              attention_shape(l));
  backend_.rope_backward(dqkv.columns(0, q + kv), scratch_.cos_sin, D, lane.batch);
  if (a.qk_norm) {
    const Tensor raw = slot(l, Slot::qkv_raw, lane), qk_rstd = slot(l, Slot::qk_rstd, lane);
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
                  lane);
  if (!trained_below(l, Group::qkv)) return;
  backend_.rmsnorm_backward(dhidden, gradient(l, &LayerWeights::input_norm), dnormed, h, rstd,
                            w.input_norm, 1.0f, scratch_.column_sums);
}

}  // namespace utrain
