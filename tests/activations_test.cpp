// train.recompute = "offload": inputs of layers in host memory. The bits of "block", also where a
// copy is made as late as it may be; what is copied, and where it lies.
#include "model/activations.h"

#include <gtest/gtest.h>

#include <map>

#include "plan/recording_backend.h"
#include "tiny_model.h"

namespace utrain {
namespace {

constexpr int64_t kRing = Activations::kRing;

TinyModelOptions deep(int64_t n_layers, Recompute recompute) {
  TinyModelOptions o{tiny_architecture(), all_projections(3), 0.2, recompute};
  o.architecture.n_layers = n_layers;
  o.architecture.window.assign(static_cast<size_t>(n_layers), 0);
  return o;
}

struct Inner {
  std::unique_ptr<Backend> inner = make_cpu_backend(DType::f32);
};

// Copies are made when they are waited for, and until then `device` holds nothing that is read: a
// GPU may do so.
class LateCopies : private Inner, public RecordingBackend {
 public:
  LateCopies() : RecordingBackend(*inner) {}

  int64_t copy_in_begin(void* device, const void* host, int64_t bytes) override {
    n_in_bytes += bytes;
    std::fill_n(static_cast<uint8_t*>(device), bytes, uint8_t{0xFF});
    return begin(device, host, bytes);
  }
  int64_t copy_out_begin(void* host, const void* device, int64_t bytes) override {
    n_out_bytes += bytes;
    return begin(host, device, bytes);
  }
  void copy_wait(int64_t ticket) override {
    const auto copy = under_way_.find(ticket);
    if (copy == under_way_.end()) return;
    const auto& [to, from, bytes] = copy->second;
    std::copy_n(static_cast<const uint8_t*>(from), bytes, static_cast<uint8_t*>(to));
    under_way_.erase(copy);
  }
  size_t n_under_way() const { return under_way_.size(); }

  int64_t n_in_bytes = 0, n_out_bytes = 0;

 private:
  struct Copy {
    void* to;
    const void* from;
    int64_t bytes;
  };
  int64_t begin(void* to, const void* from, int64_t bytes) {
    under_way_[++newest_] = {to, from, bytes};
    return newest_;
  }

  std::map<int64_t, Copy> under_way_;
  int64_t newest_ = 0;
};

TEST(Offload, HasTheBitsOfBlock) {
  for (int64_t n_layers = 1; n_layers <= 8; ++n_layers) {
    SCOPED_TRACE(n_layers);
    TinyModel<float> wanted(deep(n_layers, Recompute::block)),
        found(deep(n_layers, Recompute::offload)),
        late(deep(n_layers, Recompute::offload), std::make_unique<LateCopies>());
    for (int step = 0; step < 2; ++step) {
      const float loss = wanted.loss_and_gradients(0.25);
      for (TinyModel<float>* model : {&found, &late}) {
        EXPECT_EQ(model->loss_and_gradients(0.25), loss);
        EXPECT_EQ(model->gradients(), wanted.gradients());
      }
    }
  }
}

TEST(Offload, CopiesTheRowsOfAPassThatHasABackward) {
  constexpr int64_t n_layers = 7;
  auto owned = std::make_unique<LateCopies>();
  const LateCopies& backend = *owned;
  TinyModel<float> model(deep(n_layers, Recompute::offload), std::move(owned));
  model.loss_and_gradients(1.0);
  const int64_t C = tiny_architecture().hidden_size, size = size_of(DType::f32);
  const int64_t wanted = (n_layers - kRing) * model.n_rows() * C * size;
  EXPECT_EQ(backend.n_out_bytes, wanted);
  EXPECT_EQ(backend.n_in_bytes, wanted);
  EXPECT_EQ(backend.n_under_way(), 0u);

  model.eval_mode();
  model.loss();
  EXPECT_EQ(backend.n_out_bytes, wanted);
  EXPECT_EQ(backend.n_in_bytes, wanted);
}

TEST(Offload, InputsAreHostMemory) {
  constexpr int64_t n_layers = 9;
  const TinyModel<float> block(deep(n_layers, Recompute::block)),
      offload(deep(n_layers, Recompute::offload));
  const int64_t rows = tiny_pass(17).n_tokens + kSpareRows;
  const int64_t bytes =
      (rows * tiny_architecture().hidden_size * size_of(DType::f32) + 255) / 256 * 256;
  const auto bytes_of = [](const TinyModel<float>& model, MemoryClass memory_class) {
    return model.arena().bytes(memory_class);
  };
  EXPECT_EQ(bytes_of(block, MemoryClass::host), 0);
  EXPECT_EQ(bytes_of(offload, MemoryClass::host), (n_layers - kRing) * bytes);
  EXPECT_EQ(bytes_of(block, MemoryClass::activations) - bytes_of(offload, MemoryClass::activations),
            (n_layers - kRing) * bytes);
  for (const MemoryClass m : kMemoryClasses) {
    if (m == MemoryClass::host || m == MemoryClass::activations) continue;
    EXPECT_EQ(bytes_of(offload, m), bytes_of(block, m)) << name_of(m);
  }
}

}  // namespace
}  // namespace utrain
