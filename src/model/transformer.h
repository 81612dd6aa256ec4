// The Llama-family transformer with LoRA or full fine-tuning, forward and backward, by hand:
//   block: h' = h + o(attention(rope(qkv(norm(h)))));  h'' = h' + down(swiglu(gate_up(norm(h'))))
// Written once, on Backend alone. Frozen weights get no gradient, and nothing is computed below the
// first tensor that is trained. Several passes go through the layers together, so that what a layer
// needs is fetched once for all of them; each tensor's gradient adds them in their order.
#pragma once

#include <span>

#include "model/activations.h"
#include "model/lora.h"
#include "model/residency.h"
#include "model/weights.h"

namespace utrain {

// What a transformer computes with; all outlive it.
struct ModelParts {
  const Weights& weights;
  const Weights* weight_gradients;  // null where the base is frozen
  const Adapters& adapters;
  Residency& residency;
};

class Transformer {
 public:
  struct Sizes {
    int64_t n_positions = 0;  // tokens of the longest document
    double dropout = 0.0;     // of the adapters' input while training
  };
  Transformer(const Architecture& architecture, const ModelParts& parts, Activations& activations,
              Backend& backend, Arena& arena, const Sizes& sizes);
  void bind(const Arena& arena);  // after the arena is placed

  // What follows is training, with dropout keyed by (seed, epoch); or evaluation: nothing is
  // dropped, and a forward has no backward.
  void train_mode(uint64_t seed, int64_t epoch);
  void eval_mode();

  // At most activations.n_passes() passes that have rows; none where this rank has no rows: what
  // the other ranks ask of the residency must be asked here too. Ends with the normed hidden states
  // of the last layer.
  using Passes = std::span<const TokenBatch>;
  void forward(Passes passes);
  // After forward(), of the same passes. loss [1, 1] += sum of the cross entropy over their targets.
  void loss(const Tensor& loss, Passes passes);
  // The same, and the gradient of that sum times the factor: += in what is trained.
  void loss_and_backward(const Tensor& loss, Passes passes, const LossFactor& dloss);
  // Logits [n, V] of rows [first, first + n) of the first pass, n <= logits_rows(), in scratch that
  // the next call overwrites. After forward().
  Tensor logits(int64_t first, int64_t n);
  int64_t logits_rows() const { return logits_rows_; }

 private:
  // A pass under way, and its residual stream at full rows.
  struct Lane {
    int64_t index = 0;
    TokenBatch batch;
    Tensor normed, branch;  // [N, C]
    Tensor dhidden;         // [N, C] gradient of the residual stream
  };
  std::vector<Lane> lanes(Passes passes) const;
  void declare_scratch(Arena& arena, int64_t n_positions, double dropout);
  Linear linear(int64_t l, Group group) const;
  Tensor slot(int64_t l, Slot s, const Lane& lane) const;
  LinearContext context(const TokenBatch& batch) const;
  void linear_forward(int64_t l, Group group, const Tensor& y, const Tensor& x, const Lane& lane);
  void linear_backward(int64_t l, Group group, const Tensor& dx, const Tensor& dy, const Tensor& x,
                       const Lane& lane);
  void layer_forward(int64_t l, const Lane& lane);
  void attention_block_forward(int64_t l, const Lane& lane);
  void mlp_block_forward(int64_t l, const Lane& lane);
  void head_backward(const Tensor& loss, const Lane& lane, const LossFactor& dloss);
  void layer_backward(int64_t l, const Lane& lane);
  void recompute(int64_t l, const Lane& lane);
  void mlp_block_backward(int64_t l, const Lane& lane);
  void attention_block_backward(int64_t l, const Lane& lane);
  bool is_trained(Group group) const;  // does its input matter to a gradient?
  Tensor gradient(int64_t l, Tensor LayerWeights::*weight) const;  // empty where frozen
  EndWeights end_gradients() const;                                // likewise
  bool trained_below(int64_t l, Group group) const;  // does anything trained lie below it?
  AttentionShape attention_shape(int64_t l) const;

  Architecture architecture_;
  const Weights& weights_;
  const Weights* weight_gradients_;
  const Adapters& adapters_;
  Residency& residency_;
  Activations& activations_;
  Backend& backend_;
  Dropout dropout_;
  bool trains_ = false;
  float dropout_p_ = 0.0f;
  int64_t logits_rows_ = 0;

  struct Ids {
    std::vector<Arena::Id> normed, branch, dhidden;
    Arena::Id cos_sin, dropped, dxa, act, logits, target_rows, losses, dnormed;
    Arena::Id dact, act_again, normed_again, dattention, dqkv, delta, column_sums;
  } ids_;
  // Scratch at full capacity; [N, ...] unless said otherwise.
  struct Scratch {
    Tensor cos_sin;          // [positions, D] float32
    Tensor dropped, dxa;     // of LinearContext
    Tensor act;              // [N, F]
    LossScratch loss;        // logits_rows rows
    Tensor dnormed;          // [N, C]
    Tensor dact, act_again;  // [N, F]
    Tensor normed_again;     // [N, C]
    Tensor dattention;       // [N, Hq D]
    Tensor dqkv, delta;      // [N, (Hq + 2 Hkv) D], [N, Hq]
    Tensor column_sums;      // [kColumnParts, widest]; empty where the base is frozen
  } scratch_;
  std::vector<Lane> lanes_;  // of each pass, at full capacity, without a batch
};

}  // namespace utrain
