#include "model/weights.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <utility>

#include "core/convert.h"
#include "core/flat_block.h"
#include "core/normal.h"
#include "core/random.h"
#include "io/model_files.h"

namespace utrain {

namespace {

struct LayoutBuilder {
  ImageLayout layout;

  // Rows that follow the last part without a gap: one matrix of several projections.
  void add_rows(std::string name, int64_t rows, int64_t cols) {
    layout.parts.push_back({std::move(name), layout.bytes, rows, cols});
    layout.bytes += rows * cols * size_of(layout.dtype);
  }
  void align() {
    const int64_t block = kFlatBlock * size_of(layout.dtype);
    layout.bytes = (layout.bytes + block - 1) / block * block;
  }
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
  void read(const std::string& name, int64_t first, int64_t n, DType dtype,
            void* out) const override {
    read_elements(*tensors_.at(name), first, n, dtype, out);
  }
  void prefetch(const std::string& name, int64_t first, int64_t n) const override {
    prefetch_elements(*tensors_.at(name), first, n);
  }

 private:
  ModelFiles files_;
  std::map<std::string, const StoredTensor*> tensors_;
};

class RandomWeights : public WeightSource {
 public:
  RandomWeights(double stddev, uint64_t seed) : stddev_(static_cast<float>(stddev)), seed_(seed) {}
  void read(const std::string& name, int64_t first, int64_t n, DType dtype,
            void* out) const override {
    const bool is_norm = name.ends_with("norm.weight"), is_bias = name.ends_with(".bias");
    const uint64_t key = mix(seed_ ^ XXH3_64bits(name.data(), name.size()));
    constexpr int64_t kPiece = 2048;  // elements
    float values[kPiece];
    std::fill_n(values, kPiece, is_norm ? 1.0f : 0.0f);
    for (int64_t done = 0; done < n; done += kPiece) {
      const int64_t here = std::min(kPiece, n - done);
      if (!is_norm && !is_bias) fill_normal(key, stddev_, first + done, here, values);
      from_float(dtype, values, here, static_cast<char*>(out) + done * size_of(dtype));
    }
  }

 private:
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

namespace {

// Elements [first, first + n) of a part.
struct PartRange {
  const ImagePart* part;
  int64_t first, n;
};

// What lies in bytes [begin, end) of an image, ascending.
std::vector<PartRange> ranges_of(const ImageLayout& layout, int64_t begin, int64_t end) {
  const int64_t size = size_of(layout.dtype);
  std::vector<PartRange> ranges;
  for (const ImagePart& part : layout.parts) {
    const int64_t first = std::max<int64_t>(0, (begin - part.offset) / size);
    const int64_t last = std::min(part.rows * part.cols, (end - part.offset) / size);
    if (first < last) ranges.push_back({&part, first, last - first});
  }
  return ranges;
}

// Pieces of at most 65,536 elements, cut at multiples of that in their tensor.
std::vector<PartRange> pieces_of(const std::vector<PartRange>& ranges) {
  constexpr int64_t kPiece = 1 << 16;
  std::vector<PartRange> pieces;
  for (const auto& [part, begin, n] : ranges) {
    for (int64_t first = begin; first < begin + n;) {
      pieces.push_back({part, first, std::min(kPiece - first % kPiece, begin + n - first)});
      first += pieces.back().n;
    }
  }
  return pieces;
}

// The first exception of a parallel region, which must not leave it; rethrow() after the region.
class FirstError {
 public:
  void run(const std::function<void()>& f) {
    try {
      f();
    } catch (...) {
#pragma omp critical(utrain_first_error)
      if (error_ == nullptr) error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  std::exception_ptr error_;
};

// fill_image, while the calling thread does something else first.
void fill_image_while(const ImageLayout& layout, const WeightSource& source, int64_t begin,
                      int64_t end, void* out, const std::function<void()>& other) {
  const int64_t size = size_of(layout.dtype);
  ASSERT(begin % size == 0 && end % size == 0 && 0 <= begin && begin <= end && end <= layout.bytes);
  const auto at = [&](int64_t offset) { return static_cast<char*>(out) + offset - begin; };
  const std::vector<PartRange> ranges = ranges_of(layout, begin, end);
  int64_t padding = begin;
  for (const auto& [part, first, n] : ranges) {
    std::fill(at(padding), at(part->offset + first * size), '\0');
    padding = part->offset + (first + n) * size;
  }
  std::fill(at(padding), at(end), '\0');

  const std::vector<PartRange> pieces = pieces_of(ranges);
  FirstError error;
#pragma omp parallel
  {
#pragma omp master
    error.run(other);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto& [part, first, n] = pieces[i];
      error.run([&] {
        source.read(part->name, first, n, layout.dtype, at(part->offset + first * size));
      });
    }
  }
  error.rethrow();
}

}  // namespace

void fill_image(const ImageLayout& layout, const WeightSource& source, int64_t begin, int64_t end,
                void* out) {
  fill_image_while(layout, source, begin, end, out, [] {});
}

LayerWeights layer_views(const Architecture& a, int64_t layer, const ImageLayout& layout,
                         const Tensor& image) {
  const std::string prefix = layer_prefix(layer);
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
  return w;
}

EndWeights end_views(const Architecture& a, const ImageLayout& layout, const Tensor& image) {
  EndWeights w;
  w.embedding = view(layout, image, "model.embed_tokens.weight", a.vocab_size);
  w.final_norm = view(layout, image, "model.norm.weight", 1);
  w.head = a.tied_embeddings ? w.embedding : view(layout, image, "lm_head.weight", a.vocab_size);
  return w;
}

std::vector<ImageLayout> image_layouts(const Architecture& architecture, DType dtype) {
  std::vector<ImageLayout> layouts;
  for (int64_t l = 0; l < architecture.n_layers; ++l)
    layouts.push_back(layer_image(architecture, l, dtype));
  layouts.push_back(ends_image(architecture, dtype));
  return layouts;
}

// Pieces of the images go to the device one by one: while a piece is filled by all threads, the
// calling one, which is the backend's, uploads the piece before it.
void load_images(const std::vector<ImageSlice>& slices, const WeightSource& source,
                 Backend& backend) {
  constexpr int64_t kPiece = 32 << 20;  // bytes
  std::vector<ImageSlice> pieces;
  int64_t largest = 0;
  for (const ImageSlice& slice : slices) {
    for (int64_t begin = slice.begin; begin < slice.end; begin += kPiece) {
      const int64_t end = std::min(begin + kPiece, slice.end);
      pieces.push_back({slice.layout, static_cast<char*>(slice.to) + begin - slice.begin, begin,
                        end, slice.in_host});
      largest = std::max(largest, end - begin);
    }
  }
  if (pieces.empty()) return;

  const auto make_buffer = [&] {
    return std::make_unique_for_overwrite<char[]>(static_cast<size_t>(largest));
  };
  const std::array<std::unique_ptr<char[]>, 2> buffers = {make_buffer(), make_buffer()};
  const auto upload = [&](size_t i) {
    if (!pieces[i].in_host)
      backend.upload(pieces[i].to, buffers[i % 2].get(), pieces[i].end - pieces[i].begin);
  };
  const auto prefetch = [&](size_t i) {
    const ImageSlice& p = pieces[i];
    for (const auto& [part, first, n] : ranges_of(*p.layout, p.begin, p.end)) {
      source.prefetch(part->name, first, n);
    }
  };
  prefetch(0);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const ImageSlice& p = pieces[i];
    void* filled = p.in_host ? p.to : buffers[i % 2].get();
    fill_image_while(*p.layout, source, p.begin, p.end, filled, [&] {
      if (i + 1 < pieces.size()) prefetch(i + 1);
      if (i > 0) upload(i - 1);
    });
  }
  upload(pieces.size() - 1);
}

void Weights::bind(const Architecture& architecture, const std::vector<Tensor>& images) {
  const std::vector<ImageLayout> layouts = image_layouts(architecture, images.at(0).dtype);
  ASSERT(images.size() == layouts.size());
  layers_.clear();
  for (size_t l = 0; l + 1 < layouts.size(); ++l) {
    layers_.push_back(layer_views(architecture, static_cast<int64_t>(l), layouts[l], images[l]));
  }
  ends_ = end_views(architecture, layouts.back(), images.back());
}

}  // namespace utrain
