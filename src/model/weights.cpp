#include "model/weights.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numbers>

#include "core/convert.h"
#include "core/random.h"
#include "io/model_files.h"

namespace utrain {

namespace {

constexpr int64_t kAlignment = 256;  // bytes

struct LayoutBuilder {
  ImageLayout layout;

  // Rows that follow the last part without a gap: one matrix of several projections.
  void add_rows(std::string name, int64_t rows, int64_t cols) {
    layout.parts.push_back({std::move(name), layout.bytes, rows, cols});
    layout.bytes += rows * cols * size_of(layout.dtype);
  }
  void align() { layout.bytes = (layout.bytes + kAlignment - 1) / kAlignment * kAlignment; }
  void add(std::string name, int64_t rows, int64_t cols) {
    add_rows(std::move(name), rows, cols);
    align();
  }
};

struct Member {
  Projection projection;
  int64_t out, in;
};

std::vector<Member> members_of(Group group, const Architecture& a) {
  const int64_t C = a.hidden_size, F = a.intermediate_size;
  const int64_t q = a.n_heads * a.head_dim, kv = a.n_kv_heads * a.head_dim;
  switch (group) {
    case Group::qkv: return {{Projection::q, q, C}, {Projection::k, kv, C}, {Projection::v, kv, C}};
    case Group::o: return {{Projection::o, C, q}};
    case Group::gate_up: return {{Projection::gate, F, C}, {Projection::up, F, C}};
    case Group::down: return {{Projection::down, C, F}};
  }
  return {};
}

bool has_bias(Group group, const Architecture& a) {
  switch (group) {
    case Group::qkv: return a.attention_bias;
    case Group::o: return a.o_bias;
    case Group::gate_up:
    case Group::down: return a.mlp_bias;
  }
  return false;
}

std::string layer_prefix(int64_t layer) {
  return fmt::format("model.layers.{}.", layer);
}

// Part `name` of an image that lies at `image`, `rows` rows from there on (a fused matrix spans
// several parts).
Tensor view(const ImageLayout& layout, const Tensor& image, const std::string& name, int64_t rows) {
  for (const ImagePart& part : layout.parts) {
    if (part.name == name) {
      return make_tensor(static_cast<char*>(image.data) + part.offset, layout.dtype, rows,
                         part.cols);
    }
  }
  ASSERT(false && "no such part");
  return {};
}

bool same_values(const StoredTensor& a, const StoredTensor& b) {
  if (a.dtype == b.dtype && a.bytes == b.bytes)  // bytes first: they are the same in most files
    if (std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes)) == 0) return true;
  constexpr int64_t kChunk = 1 << 16;  // elements
  std::vector<float> x(kChunk), y(kChunk);
  for (int64_t first = 0; first < a.n_elem(); first += kChunk) {
    const int64_t n = std::min(kChunk, a.n_elem() - first);
    read_elements(a, first, n, x.data());
    read_elements(b, first, n, y.data());
    if (!std::equal(x.begin(), x.begin() + n, y.begin())) return false;
  }
  return true;
}

// transformers does not tie what the files hold twice with different values.
void check_tied_head(const ModelFiles& files, const std::string& dir, const Architecture& a) {
  if (files.find("lm_head.weight") == nullptr) return;
  const std::vector<int64_t> shape = {a.vocab_size, a.hidden_size};
  if (same_values(files.at("lm_head.weight", shape), files.at("model.embed_tokens.weight", shape)))
    return;
  fail(ExitCode::bad_file, dir,
       "lm_head.weight differs from model.embed_tokens.weight, though config.json ties them "
       "(tie_word_embeddings = true)",
       "set tie_word_embeddings to false in config.json, or remove lm_head.weight from the files");
}

class PretrainedWeights : public WeightSource {
 public:
  PretrainedWeights(const std::string& dir, const Architecture& architecture) : files_(dir) {
    for (const TensorSpec& spec : expected_tensors(architecture)) {
      tensors_[spec.name] = &files_.at(spec.name, spec.shape);
    }
    if (architecture.tied_embeddings) check_tied_head(files_, dir, architecture);
  }
  void read(const std::string& name, int64_t first, int64_t n, float* out) const override {
    read_elements(*tensors_.at(name), first, n, out);
  }

 private:
  ModelFiles files_;
  std::map<std::string, const StoredTensor*> tensors_;
};

class RandomWeights : public WeightSource {
 public:
  RandomWeights(double stddev, uint64_t seed) : stddev_(static_cast<float>(stddev)), seed_(seed) {}
  void read(const std::string& name, int64_t first, int64_t n, float* out) const override {
    if (name.ends_with("norm.weight")) {
      std::fill_n(out, n, 1.0f);
    } else if (name.ends_with(".bias")) {
      std::fill_n(out, n, 0.0f);
    } else {
      const uint64_t key = mix(seed_ ^ XXH3_64bits(name.data(), name.size()));
      for (int64_t i = 0; i < n; ++i) out[i] = stddev_ * normal(key, first + i);
    }
  }

 private:
  // Box and Muller 1958: one normal number from two uniform ones.
  static float normal(uint64_t key, int64_t i) {
    const Philox words =
        philox(key, static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 0, 1);
    const float u = 1.0f - uniform(words.x[0]);  // in (0, 1]
    return std::sqrt(-2.0f * std::log(u)) *
           std::cos(2.0f * std::numbers::pi_v<float> * uniform(words.x[1]));
  }

  float stddev_;
  uint64_t seed_;
};

}  // namespace

ImageLayout layer_image(const Architecture& a, int64_t layer, DType dtype) {
  const std::string prefix = layer_prefix(layer);
  LayoutBuilder b{{dtype, {}, 0}};
  b.add(prefix + "input_layernorm.weight", 1, a.hidden_size);
  b.add(prefix + "post_attention_layernorm.weight", 1, a.hidden_size);
  if (a.qk_norm) {
    b.add(prefix + "self_attn.q_norm.weight", 1, a.head_dim);
    b.add(prefix + "self_attn.k_norm.weight", 1, a.head_dim);
  }
  for (const Group group : kGroups) {
    for (const Member& m : members_of(group, a)) {
      b.add_rows(fmt::format("{}{}.weight", prefix, module_of(m.projection)), m.out, m.in);
    }
    b.align();
    if (!has_bias(group, a)) continue;
    for (const Member& m : members_of(group, a)) {
      b.add_rows(fmt::format("{}{}.bias", prefix, module_of(m.projection)), 1, m.out);
    }
    b.align();
  }
  return b.layout;
}

ImageLayout ends_image(const Architecture& a, DType dtype) {
  LayoutBuilder b{{dtype, {}, 0}};
  b.add("model.embed_tokens.weight", a.vocab_size, a.hidden_size);
  b.add("model.norm.weight", 1, a.hidden_size);
  if (!a.tied_embeddings) b.add("lm_head.weight", a.vocab_size, a.hidden_size);
  return b.layout;
}

std::unique_ptr<WeightSource> open_pretrained(const std::string& model_dir,
                                              const Architecture& architecture) {
  return std::make_unique<PretrainedWeights>(model_dir, architecture);
}

std::unique_ptr<WeightSource> random_weights(const Architecture& architecture, uint64_t seed) {
  return std::make_unique<RandomWeights>(architecture.initializer_range, seed);
}

void fill_image(const ImageLayout& layout, const WeightSource& source, int64_t begin, int64_t end,
                void* out) {
  const int64_t size = size_of(layout.dtype);
  ASSERT(begin % size == 0 && end % size == 0 && begin <= end && end <= layout.bytes);
  std::memset(out, 0, static_cast<size_t>(end - begin));
  constexpr int64_t kChunk = 1 << 16;  // elements converted at a time
  for (const ImagePart& part : layout.parts) {
    const int64_t first = std::max<int64_t>(0, (begin - part.offset) / size);
    const int64_t last = std::min(part.rows * part.cols, (end - part.offset) / size);
    const int64_t n_chunks = (last - first + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < n_chunks; ++c) {
      const int64_t i = first + c * kChunk;
      const int64_t n = std::min(kChunk, last - i);
      std::vector<float> values(static_cast<size_t>(n));
      source.read(part.name, i, n, values.data());
      from_float(layout.dtype, values.data(), n,
                 static_cast<char*>(out) + part.offset + i * size - begin);
    }
  }
}

Weights::Weights(const Architecture& architecture, Backend& backend, Arena& arena)
    : architecture_(architecture), backend_(backend) {
  const DType dtype = backend.dtype();
  const auto declare = [&](const std::string& name, const ImageLayout& layout) {
    ids_.push_back(arena.declare(name, dtype, 1, layout.bytes / size_of(dtype), MemoryClass::base));
  };
  for (int64_t l = 0; l < architecture.n_layers; ++l) {
    declare(fmt::format("layer {}", l), layer_image(architecture, l, dtype));
  }
  declare("embedding, final norm, head", ends_image(architecture, dtype));
}

Tensor Weights::load_image(const ImageLayout& layout, const WeightSource& source,
                           Tensor image) const {
  std::vector<std::byte> bytes(static_cast<size_t>(layout.bytes));
  fill_image(layout, source, 0, layout.bytes, bytes.data());
  backend_.upload(image.data, bytes.data(), layout.bytes);
  return image;
}

void Weights::load(const Arena& arena, const WeightSource& source) {
  const Architecture& a = architecture_;
  for (int64_t l = 0; l < a.n_layers; ++l) {
    const ImageLayout layout = layer_image(a, l, backend_.dtype());
    const Tensor image = load_image(layout, source, arena[ids_[static_cast<size_t>(l)]]);
    const std::string prefix = layer_prefix(l);
    LayerWeights w;
    w.input_norm = view(layout, image, prefix + "input_layernorm.weight", 1);
    w.post_attention_norm = view(layout, image, prefix + "post_attention_layernorm.weight", 1);
    if (a.qk_norm) {
      w.q_norm = view(layout, image, prefix + "self_attn.q_norm.weight", 1);
      w.k_norm = view(layout, image, prefix + "self_attn.k_norm.weight", 1);
    }
    for (const Group group : kGroups) {
      const std::vector<Member> members = members_of(group, a);
      int64_t out = 0;
      for (const Member& m : members) out += m.out;
      const std::string first = fmt::format("{}{}", prefix, module_of(members[0].projection));
      const auto g = static_cast<size_t>(group);
      w.W[g] = view(layout, image, first + ".weight", out);
      if (has_bias(group, a)) {
        w.bias[g] = view(layout, image, first + ".bias", 1);
        w.bias[g].cols = w.bias[g].ld = out;
      }
    }
    layers_.push_back(w);
  }
  const ImageLayout layout = ends_image(a, backend_.dtype());
  const Tensor image = load_image(layout, source, arena[ids_.back()]);
  ends_.embedding = view(layout, image, "model.embed_tokens.weight", a.vocab_size);
  ends_.final_norm = view(layout, image, "model.norm.weight", 1);
  ends_.head =
      a.tied_embeddings ? ends_.embedding : view(layout, image, "lm_head.weight", a.vocab_size);
}

}  // namespace utrain
