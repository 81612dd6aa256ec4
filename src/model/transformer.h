// The Llama-family transformer with LoRA, forward and backward for one pass, by hand:
//   block: h' = h + o(attention(rope(qkv(norm(h)))));  h'' = h' + down(swiglu(gate_up(norm(h'))))
// Written once, on Backend alone. Frozen weights get no gradient, and nothing is computed below the
// first adapter.
#pragma once

#include <functional>

#include "model/activations.h"
#include "model/lora.h"
#include "model/weights.h"

namespace utrain {

class Transformer {
 public:
  // n_positions: longest document; dropout: of the adapters' input while training.
  Transformer(const Architecture& architecture, const Weights& weights, const Adapters& adapters,
              const Activations& activations, Backend& backend, Arena& arena, int64_t n_positions,
              double dropout);
  void bind(const Arena& arena);  // after the arena is placed

  // Dropout for what follows: keyed by (seed, epoch). Without it (evaluation) nothing is dropped.
  void train_mode(uint64_t seed, int64_t epoch);
  void eval_mode();

  // Ends with the normed hidden states of the last layer.
  void forward(const TokenBatch& batch);
  // loss [1, 1] += sum of the cross entropy over the batch's targets. After forward().
  void loss(const Tensor& loss, const TokenBatch& batch);
  // The same, and the gradient of dloss * that sum: dA, dB += in the adapters. layer_done(l): this
  // pass adds nothing more to the gradients of layers l and above.
  using LayerDone = std::function<void(int64_t l)>;
  void loss_and_backward(const Tensor& loss, const TokenBatch& batch, double dloss,
                         const LayerDone& layer_done = {});
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
  bool adapters_below(int64_t l, Group group) const;  // does anything trained lie below it?
  AttentionShape attention_shape(int64_t l) const;

  Architecture architecture_;
  const Weights& weights_;
  const Adapters& adapters_;
  const Activations& activations_;
  Backend& backend_;
  Dropout dropout_;
  float dropout_p_ = 0.0f;
  int64_t logits_rows_ = 0;

  struct Ids {
    Arena::Id cos_sin, dropped, dxa, dhidden, normed, branch, act, logits, target_rows, losses;
    Arena::Id dnormed, dact, act_again, normed_again, dattention, dqkv, delta;
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
  } scratch_;
};

}  // namespace utrain
