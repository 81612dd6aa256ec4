// The Llama-family transformer with LoRA or full fine-tuning, forward and backward for one pass, by
// hand:
//   block: h' = h + o(attention(rope(qkv(norm(h)))));  h'' = h' + down(swiglu(gate_up(norm(h'))))
// Written once, on Backend alone. Frozen weights get no gradient, and nothing is computed below the
// first tensor that is trained.
#pragma once

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

  // Ends with the normed hidden states of the last layer.
  void forward(const TokenBatch& batch);
  // loss [1, 1] += sum of the cross entropy over the batch's targets. After forward().
  void loss(const Tensor& loss, const TokenBatch& batch);
  // The same, and the gradient of that sum times the factor: += in what is trained.
  void loss_and_backward(const Tensor& loss, const TokenBatch& batch, const LossFactor& dloss);
  // Instead of forward() and loss(), or loss_and_backward(), where this rank has no rows in a pass:
  // what the other ranks ask of the residency must be asked here too.
  void forward_without_rows();
  void loss_without_rows();
  void backward_without_rows();
  // Logits [n, V] of rows [first, first + n), n <= logits_rows(), in scratch that the next call
  // overwrites. After forward().
  Tensor logits(int64_t first, int64_t n);
  int64_t logits_rows() const { return logits_rows_; }

 private:
  void declare_scratch(Arena& arena, int64_t n_positions, double dropout);
  Linear linear(int64_t l, Group group) const;
  Tensor slot(int64_t l, Slot s, const TokenBatch& batch) const;
  LinearContext context(const TokenBatch& batch) const;
  void linear_forward(int64_t l, Group group, const Tensor& y, const Tensor& x,
                      const TokenBatch& batch);
  void linear_backward(int64_t l, Group group, const Tensor& dx, const Tensor& dy, const Tensor& x,
                       const TokenBatch& batch);
  void attention_block_forward(int64_t l, const TokenBatch& batch);
  void mlp_block_forward(int64_t l, const TokenBatch& batch);
  void recompute(int64_t l, const TokenBatch& batch);
  void mlp_block_backward(int64_t l, const TokenBatch& batch);
  void attention_block_backward(int64_t l, const TokenBatch& batch);
  bool is_trained(Group group) const;  // does its input matter to a gradient?
  Tensor gradient(int64_t l, Tensor LayerWeights::*weight) const;  // empty where frozen
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
    Arena::Id cos_sin, dropped, dxa, dhidden, normed, branch, act, logits, target_rows, losses;
    Arena::Id dnormed, dact, act_again, normed_again, dattention, dqkv, delta, column_sums;
  } ids_ = {};
  // Scratch at full capacity; [N, ...] unless said otherwise.
  struct Scratch {
    Tensor cos_sin;          // [positions, D] float32
    Tensor dropped, dxa;     // of LinearContext
    Tensor dhidden;          // [N, C] gradient of the residual stream
    Tensor normed, branch;   // [N, C]
    Tensor act;              // [N, F]
    LossScratch loss;        // logits_rows rows
    Tensor dnormed;          // [N, C]
    Tensor dact, act_again;  // [N, F]
    Tensor normed_again;     // [N, C]
    Tensor dattention;       // [N, Hq D]
    Tensor dqkv, delta;      // [N, (Hq + 2 Hkv) D], [N, Hq]
    Tensor column_sums;      // [kColumnParts, widest]; empty where the base is frozen
  } scratch_;
};

}  // namespace utrain
