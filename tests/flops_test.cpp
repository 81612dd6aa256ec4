// FLOPs of a step against counting every product and every (query, key) pair one by one; data sheet
// peaks by the names that drivers give.
#include "model/flops.h"

#include <gtest/gtest.h>

#include "app/peak_flops.h"
#include "core/causal_pairs.h"
#include "tiny_model.h"

namespace utrain {
namespace {

int64_t pairs_one_by_one(int64_t length, int64_t window) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t j = 0; j <= i; ++j) pairs += window == 0 || i - j < window ? 1 : 0;
  }
  return pairs;
}

TEST(CausalPairs, AreThoseOfTheMask) {
  for (int64_t length = 1; length < 12; ++length) {
    for (int64_t window = 0; window < 14; ++window) {
      EXPECT_EQ(causal_pairs(length, window), pairs_one_by_one(length, window))
          << length << " " << window;
    }
  }
  EXPECT_EQ(causal_pairs(int64_t{1} << 40, 1), int64_t{1} << 40);
}

// Products as if they were made one after the other: forward from the embedding up, backward from
// the head down to the first adapter, which is where the gradient of the residual stream is not
// needed any more.
class OneByOne {
 public:
  OneByOne(const Architecture& a, const LoraOptions& lora, const std::vector<int64_t>& lengths,
           int64_t n_targets)
      : a_(a), lora_(lora), lengths_(lengths), n_targets_(n_targets) {
    for (const int64_t n : lengths) n_ += n;
  }

  int64_t count() {
    for (int64_t l = 0; l < a_.n_layers; ++l) forward(l);
    product(n_targets_, a_.vocab_size, a_.hidden_size);
    product(n_targets_, a_.hidden_size, a_.vocab_size);
    for (int64_t l = a_.n_layers - 1; l >= 0 && backward(l); --l) {
    }
    return flops_;
  }

 private:
  void product(int64_t m, int64_t n, int64_t k) { flops_ += 2 * m * n * k; }
  bool is_target(Projection p) const {
    return std::find(lora_.targets.begin(), lora_.targets.end(), p) != lora_.targets.end();
  }
  void attention(int64_t l, int64_t products) {
    for (const int64_t n : lengths_) {
      const int64_t pairs = pairs_one_by_one(n, a_.window[static_cast<size_t>(l)]);
      for (int64_t h = 0; h < a_.n_heads; ++h) flops_ += products * 2 * pairs * a_.head_dim;
    }
  }

  void forward(int64_t l) {
    attention(l, 2);
    for (const Projection p : kProjections) {
      const auto [in, out] = shape_of(p, a_);
      product(n_, out, in);
      if (!is_target(p)) continue;
      product(n_, lora_.r, in);
      product(n_, out, lora_.r);
    }
  }

  // Whether the gradient goes on below the layer.
  bool backward(int64_t l) {
    for (auto group = kGroups.rbegin(); group != kGroups.rend(); ++group) {
      bool goes_on = l > 0;
      for (const Projection p : lora_.targets) goes_on |= group_of(p) < *group;
      for (const Projection p : kProjections) {
        if (group_of(p) != *group) continue;
        const auto [in, out] = shape_of(p, a_);
        if (goes_on) product(n_, in, out);
        if (!is_target(p)) continue;
        product(n_, lora_.r, out);              // dy B
        product(out, lora_.r, n_);              // dB
        product(lora_.r, in, n_);               // dA
        if (goes_on) product(n_, in, lora_.r);  // to dx
      }
      if (!goes_on) return false;
      if (*group == Group::o) attention(l, 4);
    }
    return true;
  }

  const Architecture& a_;
  const LoraOptions& lora_;
  const std::vector<int64_t>& lengths_;
  int64_t n_targets_, n_ = 0, flops_ = 0;
};

TEST(ModelFlops, AreTheProductsOneByOne) {
  Architecture windows = tiny_architecture();
  windows.window = {3, 0};
  Architecture three_layers = tiny_architecture();
  three_layers.n_layers = 3;
  three_layers.window = {0, 7, 2};
  for (const Architecture& a : {tiny_architecture(), windows, three_layers}) {
    for (const std::vector<Projection>& targets :
         std::vector<std::vector<Projection>>{{kProjections.begin(), kProjections.end()},
                                              {Projection::q, Projection::v},
                                              {Projection::o},
                                              {Projection::gate, Projection::up},
                                              {Projection::up, Projection::down},
                                              {Projection::down}}) {
      for (const int64_t r : {1, 5}) {
        const LoraOptions lora{r, 1.0, false, targets};
        const std::vector<int64_t> lengths = {5, 1, 9};
        EXPECT_EQ(model_flops(a, lora, lengths, 7),
                  static_cast<double>(OneByOne(a, lora, lengths, 7).count()))
            << targets.size() << " targets, first " << name_of(targets.front());
      }
    }
  }
}

TEST(ModelFlops, OfNoDocumentsAreNone) {
  EXPECT_EQ(model_flops(tiny_architecture(), all_projections(3), {}, 0), 0.0);
  EXPECT_EQ(full_model_flops(tiny_architecture(), {}, 0), 0.0);
}

TEST(PeakFlops, ByTheNamesOfDrivers) {
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", DType::bf16), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", DType::f32), 67e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe", DType::f16), 756e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 NVL", DType::bf16), 835e12);
  EXPECT_EQ(peak_flops("NVIDIA H200", DType::bf16), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA GH200 480GB", DType::bf16), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA A100-SXM4-80GB", DType::bf16), 312e12);
  EXPECT_EQ(peak_flops("NVIDIA A10", DType::bf16), 125e12);
  EXPECT_EQ(peak_flops("NVIDIA B200", DType::bf16), 2250e12);
  EXPECT_EQ(peak_flops("NVIDIA GB200", DType::bf16), 2500e12);
}

TEST(PeakFlops, UnknownIsZero) {
  EXPECT_EQ(peak_flops("NVIDIA H1000", DType::bf16), 0.0);
  EXPECT_EQ(peak_flops("", DType::bf16), 0.0);
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", DType::f64), 0.0);
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", DType::bf16), 0.0);
}

// One layer of 2 heads of 4, C 8, F 16, V 10; documents of 3 and 1 tokens, 2 targets.
TEST(FullModelFlops, AreThreeTimesTheForwardPass) {
  Architecture a = tiny_architecture();
  a.n_layers = 1, a.hidden_size = 8, a.intermediate_size = 16, a.vocab_size = 10;
  a.n_heads = a.n_kv_heads = 2, a.head_dim = 4, a.window = {0};
  const double products = 2.0 * 4 * (4 * 8 * 8 + 3 * 8 * 16), attention = 4.0 * 8 * (6 + 1);
  EXPECT_EQ(full_model_flops(a, {3, 1}, 2), 3.0 * (products + attention + 2.0 * 2 * 8 * 10));
}

}  // namespace
}  // namespace utrain
