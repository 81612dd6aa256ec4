#include "model/flops.h"

#include <algorithm>

#include "core/causal_pairs.h"

namespace utrain {

namespace {

class Counter {
 public:
  Counter(const Architecture& architecture, const LoraOptions& lora,
          const std::vector<int64_t>& lengths)
      : a_(architecture), lora_(lora), lengths_(lengths) {
    for (const int64_t n : lengths) n_tokens_ += static_cast<double>(n);
  }

  double layer(int64_t l) const {
    double flops = attention(l);
    for (const Projection p : kProjections) flops += projection(l, p);
    return flops;
  }

  double head(int64_t n_targets) const {
    const double product =
        2.0 * static_cast<double>(n_targets) * static_cast<double>(a_.hidden_size * a_.vocab_size);
    return is_trained_below(a_.n_layers, Group::qkv) ? 2.0 * product : product;
  }

 private:
  // Is there an adapter in a group before this one, in this layer or below it?
  bool is_trained_below(int64_t l, Group group) const {
    return std::any_of(lora_.targets.begin(), lora_.targets.end(),
                       [&](Projection p) { return l > 0 || group_of(p) < group; });
  }
  bool has_adapter(Projection p) const {
    return std::find(lora_.targets.begin(), lora_.targets.end(), p) != lora_.targets.end();
  }

  double projection(int64_t l, Projection p) const {
    const ProjectionShape shape = shape_of(p, a_);
    const auto in = static_cast<double>(shape.in), out = static_cast<double>(shape.out);
    const auto r = static_cast<double>(lora_.r);
    const double dx = is_trained_below(l, group_of(p)) ? 1.0 : 0.0;
    const double frozen = (1.0 + dx) * in * out;
    const double forward = r * (in + out), backward = r * (in + 2.0 * out + dx * in);
    return 2.0 * n_tokens_ * (frozen + (has_adapter(p) ? forward + backward : 0.0));
  }

  double attention(int64_t l) const {
    double pairs = 0.0;
    for (const int64_t n : lengths_) {
      pairs += static_cast<double>(causal_pairs(n, a_.window.at(static_cast<size_t>(l))));
    }
    const double forward = 4.0 * static_cast<double>(a_.head_dim * a_.n_heads) * pairs;
    return is_trained_below(l, Group::o) ? 3.0 * forward : forward;
  }

  const Architecture& a_;
  const LoraOptions& lora_;
  const std::vector<int64_t>& lengths_;
  double n_tokens_ = 0.0;
};

}  // namespace

double model_flops(const Architecture& architecture, const LoraOptions& lora,
                   const std::vector<int64_t>& lengths, int64_t n_targets) {
  const Counter counter(architecture, lora, lengths);
  double flops = counter.head(n_targets);
  for (int64_t l = 0; l < architecture.n_layers; ++l) flops += counter.layer(l);
  return flops;
}

double full_model_flops(const Architecture& architecture, const std::vector<int64_t>& lengths,
                        int64_t n_targets) {
  const LoraOptions no_adapters;  // leaves the forward pass
  return 3.0 * model_flops(architecture, no_adapters, lengths, n_targets);
}

}  // namespace utrain
