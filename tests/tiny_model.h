// A whole model of two small layers in any number type, with every option of the architecture, on
// hand-made documents.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "comm/silent_collectives.h"
#include "core/convert.h"
#include "core/random.h"
#include "data/pass.h"
#include "parallel/model_state.h"
#include "train/device_pass.h"

namespace utrain {

struct TinyModelOptions {
  Architecture architecture;
  LoraOptions lora;
  double dropout = 0.0;
  Recompute recompute = Recompute::keep;
};

inline Architecture tiny_architecture() {
  Architecture a;
  a.model_type = "llama";
  a.hidden_size = 12;
  a.n_layers = 2;
  a.n_heads = 4;
  a.n_kv_heads = 2;
  a.head_dim = 6;
  a.intermediate_size = 10;
  a.vocab_size = 17;
  a.max_position_embeddings = 64;
  a.norm_eps = 1e-5;
  a.window = {0, 0};
  return a;
}

inline LoraOptions all_projections(int64_t r) {
  return {r, 2.0 * static_cast<double>(r), false, {kProjections.begin(), kProjections.end()}};
}

// Weights of size one over sqrt(width), norms away from 1, biases away from 0: every tensor
// matters.
class TinyWeights : public WeightSource {
 public:
  void read(const std::string& name, int64_t first, int64_t n, DType dtype,
            void* out) const override {
    std::vector<float> values(static_cast<size_t>(n));
    read(name, first, n, values.data());
    from_float(dtype, values.data(), n, out);
  }
  void read(const std::string& name, int64_t first, int64_t n, float* out) const {
    const uint64_t key = mix(std::hash<std::string>{}(name));
    for (int64_t i = 0; i < n; ++i) {
      const float u =
          2.0f * uniform(philox(key, static_cast<uint32_t>(first + i), 0, 0, 0).x[0]) - 1.0f;
      out[i] = name.ends_with("norm.weight") ? 1.0f + 0.3f * u : 0.8f * u;
    }
  }
};

// Documents of 5, 1 and 9 tokens, some of them targets, in one pass.
inline Pass tiny_pass(int64_t vocab_size) {
  Pass pass;
  int32_t document = 3;
  for (const int32_t length : {5, 1, 9}) {
    const auto first = static_cast<int32_t>(pass.n_tokens);
    pass.pieces.push_back({document, first, length});
    for (int32_t i = 0; i < length; ++i) {
      const auto token = static_cast<int32_t>(mix(static_cast<uint64_t>(first + i)) %
                                              static_cast<uint64_t>(vocab_size));
      if (i > 0 && (first + i) % 3 != 1) {
        pass.target_rows.push_back(first + i - 1);
        pass.targets.push_back(token);
      }
      pass.tokens.push_back(token);
      pass.positions.push_back(i);
      pass.begin.push_back(first);
      pass.end.push_back(first + length);
      pass.documents.push_back(document);
    }
    pass.n_tokens += length;
    document += 4;
  }
  pass.rows_by_token = rows_by_token(pass.tokens);
  return pass;
}

// Room for padding: Backend::row_multiple().
inline constexpr int64_t kSpareRows = 5;

// T: float, double or std::complex<double>.
template <class T>
class TinyModel {
 public:
  explicit TinyModel(const TinyModelOptions& o) : TinyModel(o, make_cpu_backend(dtype_of<T>)) {}
  // On a backend whose numbers are T.
  TinyModel(const TinyModelOptions& o, std::unique_ptr<Backend> backend)
      : pass_(tiny_pass(o.architecture.vocab_size)),
        backend_(std::move(backend)),
        state_(o.architecture, {Method::lora, o.lora}, *backend_, alone_, arena_),
        activations_(
            o.architecture, state_.adapters(), *backend_, pass_.n_tokens + kSpareRows,
            std::vector<Recompute>(static_cast<size_t>(o.architecture.n_layers), o.recompute),
            arena_),
        model_(o.architecture, state_.parts(), activations_, *backend_, arena_, {16, o.dropout}),
        device_pass_(*backend_, arena_, pass_.n_tokens + kSpareRows),
        loss_id_(arena_.declare("loss", backend_->loss_dtype(), 1, 1, MemoryClass::workspace)) {
    void* memory = backend_->allocate(arena_.bytes());
    // Whatever is read before it is written shows as NaN.
    std::fill_n(static_cast<uint8_t*>(memory), arena_.bytes(), uint8_t{0xFF});
    if (arena_.host_bytes() > 0) {
      host_memory_ = backend_->allocate_host(arena_.host_bytes());
      std::fill_n(static_cast<uint8_t*>(host_memory_.get()), arena_.host_bytes(), uint8_t{0xFF});
    }
    arena_.place(memory, host_memory_.get());
    state_.bind(arena_);
    state_.load(TinyWeights());
    activations_.bind(arena_);
    model_.bind(arena_);
    device_pass_.bind(arena_);
    // B away from zero, so that every gradient matters.
    std::vector<float> flat(static_cast<size_t>(layout().n_elem()), 0.0f);
    for (const Trainable& t : layout().tensors()) {
      TinyWeights().read(t.name, 0, t.rows * t.cols, &flat[static_cast<size_t>(t.offset)]);
    }
    state_.set_adapters(flat.data());
    state_.loaded();
    batch_ = device_pass_.upload(pass_);
    model_.train_mode(11, 2);
  }

  T loss() {
    backend_->zero(arena_[loss_id_]);
    model_.forward({&batch_, 1});
    model_.loss(arena_[loss_id_], {&batch_, 1});
    return loss_value();
  }
  T loss_and_gradients(double dloss) {
    backend_->zero(arena_[loss_id_]);
    state_.trainables().begin_pass(true, true);
    model_.forward({&batch_, 1});
    model_.loss_and_backward(arena_[loss_id_], {&batch_, 1}, {dloss});
    return loss_value();
  }
  void eval_mode() { model_.eval_mode(); }
  const Arena& arena() const { return arena_; }
  // Of unit u, from its first element on.
  T* parameters(int64_t u) { return state_.trainables().parameters(u).template as<T>(); }
  const T* gradients(int64_t u) { return state_.trainables().gradients(u).template as<T>(); }
  std::vector<T> gradients() {
    std::vector<T> all;
    for (int64_t u = 0; u < layout().n_units(); ++u) {
      const Tensor unit = state_.trainables().gradients(u);
      all.insert(all.end(), unit.as<T>(), unit.as<T>() + unit.cols);
    }
    return all;
  }
  int64_t n_rows() const { return batch_.n_rows; }  // of the pass, padding included
  const TrainableLayout& layout() const { return state_.layout(); }

 private:
  T loss_value() {
    const Tensor loss = arena_[loss_id_];
    if constexpr (std::is_same_v<T, float>) {
      return static_cast<float>(*loss.as<double>());
    } else {
      return *loss.as<T>();
    }
  }

  Pass pass_;
  std::unique_ptr<Backend> backend_;
  Arena arena_;
  std::shared_ptr<void> host_memory_;  // the arena's
  SilentCollectives alone_;
  ModelState state_;
  Activations activations_;
  Transformer model_;
  DevicePass device_pass_;
  Arena::Id loss_id_;
  TokenBatch batch_;
};

}  // namespace utrain
