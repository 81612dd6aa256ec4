// The base as images: any slice of one equals that part of the whole, parts lie where the layout
// says with zeros between them, a loaded base is its images, whatever fails in a thread is thrown,
// and a head that contradicts tied embeddings is refused.
#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/convert.h"
#include "io/safetensors.h"
#include "io_files.h"
#include "tiny_model.h"

namespace utrain {
namespace {

Architecture every_option() {
  Architecture a = tiny_architecture();
  a.attention_bias = a.o_bias = a.mlp_bias = a.qk_norm = true;
  return a;
}

std::vector<std::byte> slice(const ImageLayout& layout, const WeightSource& source, int64_t begin,
                             int64_t end) {
  std::vector<std::byte> bytes(static_cast<size_t>(end - begin), std::byte{0xff});
  fill_image(layout, source, begin, end, bytes.data());
  return bytes;
}

void expect_slices_of_the_whole(const ImageLayout& layout, const WeightSource& source) {
  const std::vector<std::byte> whole = slice(layout, source, 0, layout.bytes);
  std::vector<int64_t> cuts = {0, layout.bytes};
  for (const ImagePart& part : layout.parts) {
    const int64_t size = size_of(layout.dtype), end = part.offset + part.rows * part.cols * size;
    for (const int64_t cut : {part.offset - size, part.offset, part.offset + size, end, end + size})
      if (cut >= 0 && cut <= layout.bytes) cuts.push_back(cut);
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  for (size_t i = 0; i < cuts.size(); ++i) {
    for (size_t j = i; j < cuts.size(); ++j) {
      const std::vector<std::byte> part = slice(layout, source, cuts[i], cuts[j]);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + cuts[i]))
          << "[" << cuts[i] << ", " << cuts[j] << ")";
    }
  }
}

TEST(Image, SlicesAreThoseOfTheWhole) {
  const TinyWeights source;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    expect_slices_of_the_whole(layer_image(every_option(), 1, dtype), source);
    expect_slices_of_the_whole(ends_image(every_option(), dtype), source);
  }
}

// Parts of more elements than are converted at a time.
TEST(Image, LargePartsAreWholeToo) {
  const TinyWeights source;
  const ImageLayout layout{DType::f32, {{"w", 0, 3, 70000}}, 3 * 70000 * 4 + 192};
  const std::vector<std::byte> whole = slice(layout, source, 0, layout.bytes);
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
           {4, 4 * 65541}, {4 * 65535, 4 * 65537}, {4 * 131071, layout.bytes}}) {
    const std::vector<std::byte> part = slice(layout, source, begin, end);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + begin)) << begin;
  }
}

TEST(Image, PartsLieAtTheirOffsets) {
  const TinyWeights source;
  const ImageLayout layout = layer_image(every_option(), 0, DType::f32);
  std::vector<std::byte> bytes = slice(layout, source, 0, layout.bytes);
  for (const ImagePart& part : layout.parts) {
    const auto n = static_cast<size_t>(part.rows * part.cols);
    std::vector<float> wanted(n);
    source.read(part.name, 0, part.rows * part.cols, wanted.data());
    EXPECT_EQ(std::memcmp(bytes.data() + part.offset, wanted.data(), 4 * n), 0) << part.name;
    std::fill_n(bytes.begin() + part.offset, 4 * n, std::byte{0});
  }
  EXPECT_TRUE(
      std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(RandomWeights, AreNormalsWithNormsOneAndBiasesZero) {
  Architecture a = every_option();
  a.vocab_size = 20'000;
  a.initializer_range = 0.5;
  const auto source = random_weights(a, 3);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    expect_slices_of_the_whole(layer_image(a, 1, dtype), *source);
  }
  const auto values = [&](const WeightSource& from, const std::string& name, int64_t n) {
    std::vector<float> out(static_cast<size_t>(n), 7.0f);
    from.read(name, 0, n, DType::f32, out.data());
    return out;
  };
  EXPECT_EQ(values(*source, "model.norm.weight", 9), std::vector<float>(9, 1.0f));
  EXPECT_EQ(values(*source, "model.layers.0.self_attn.q_proj.bias", 9),
            std::vector<float>(9, 0.0f));
  const int64_t n = a.vocab_size * a.hidden_size;
  const std::vector<float> table = values(*source, "model.embed_tokens.weight", n);
  double squares = 0.0;
  for (const float x : table) squares += x * x;
  EXPECT_NEAR(squares / static_cast<double>(n), 0.25, 0.25 * 5.0 * std::sqrt(2.0 / n));
  EXPECT_NE(table, values(*source, "lm_head.weight", n));
  EXPECT_NE(table, values(*random_weights(a, 4), "model.embed_tokens.weight", n));
  EXPECT_EQ(table, values(*random_weights(a, 3), "model.embed_tokens.weight", n));
}

// The embedding is larger than what is uploaded at a time, and so is a layer.
TEST(Weights, LoadedAreTheImages) {
  Architecture a = every_option();
  a.n_layers = 2;
  a.hidden_size = 1024;
  a.intermediate_size = 4000;
  a.vocab_size = 9001;
  a.initializer_range = 0.02;
  const auto source = random_weights(a, 5);
  const auto backend = make_cpu_backend(DType::f32);
  const std::vector<ImageLayout> layouts = image_layouts(a, DType::f32);
  std::vector<Tensor> images;
  std::vector<ImageSlice> slices;
  for (const ImageLayout& layout : layouts) {
    images.push_back(make_tensor(backend->allocate(layout.bytes), DType::f32, 1, layout.n_elem()));
    slices.push_back({&layout, images.back().data, 0, layout.bytes});
  }
  Weights weights;
  weights.bind(a, images);
  for (int times = 0; times < 2; ++times) {
    load_images(slices, *source, *backend);
    const auto expect_image = [&](const ImageLayout& layout, const Tensor& first) {
      const std::vector<std::byte> wanted = slice(layout, *source, 0, layout.bytes);
      EXPECT_GT(layout.bytes, 32 << 20);
      EXPECT_EQ(std::memcmp(first.data, wanted.data(), wanted.size()), 0);
    };
    for (int64_t l = 0; l < a.n_layers; ++l)
      expect_image(layer_image(a, l, DType::f32), weights.layer(l).input_norm);
    expect_image(ends_image(a, DType::f32), weights.ends().embedding);
    std::fill_n(static_cast<char*>(weights.ends().embedding.data), 1000, '\0');
  }
}

TEST(Image, WhatAThreadThrowsIsThrown) {
  class Failing : public WeightSource {
   public:
    void read(const std::string& name, int64_t first, int64_t, DType, void*) const override {
      fail(ExitCode::io, name, fmt::format("element {}", first), "nothing");
    }
  };
  expect_refused([] { slice(ends_image(every_option(), DType::f32), Failing(), 0, 512); },
                 ExitCode::io, {"model.embed_tokens.weight", "element 0"});
  const auto backend = make_cpu_backend(DType::f32);
  const ImageLayout ends = ends_image(every_option(), DType::f32);
  void* const device = backend->allocate(ends.bytes);
  expect_refused(
      [&] {
        load_images({{&ends, device, 0, ends.bytes}}, Failing(), *backend);
      },
      ExitCode::io, {"element 0"});
}

// A directory with all tensors of a tied model, and an lm_head.weight that differs from the
// embedding at one element; -1 = nowhere.
void write_tied_model(const TempDir& dir, const Architecture& a, std::vector<int64_t> head_shape,
                      int64_t different) {
  SafetensorsWriter writer(dir / "model.safetensors");
  std::vector<TensorSpec> specs = expected_tensors(a);
  if (!head_shape.empty()) specs.push_back({"lm_head.weight", head_shape});
  for (const TensorSpec& spec : specs) writer.declare(spec.name, FileDType::f32, spec.shape);
  for (const TensorSpec& spec : specs) {
    int64_t n = 1;
    for (const int64_t size : spec.shape) n *= size;
    std::vector<float> values(static_cast<size_t>(n));
    const bool is_head = spec.name == "lm_head.weight";
    TinyWeights().read(is_head ? "model.embed_tokens.weight" : spec.name, 0, n, values.data());
    if (is_head && different >= 0) values[static_cast<size_t>(different)] += 1e-6f;
    writer.write(spec.name, values.data(), 4 * n);
  }
  writer.commit();
}

TEST(OpenPretrained, RefusesAHeadThatIsNotTheEmbeddingItIsTiedTo) {
  Architecture a = tiny_architecture();
  a.tied_embeddings = true;
  a.vocab_size = 6001;  // more elements than are compared at a time
  const std::vector<int64_t> shape = {a.vocab_size, a.hidden_size};
  const int64_t n = a.vocab_size * a.hidden_size;
  const TempDir dir;
  write_tied_model(dir, a, {}, -1);
  EXPECT_NO_THROW(open_pretrained(dir.str(), a));
  write_tied_model(dir, a, shape, -1);
  EXPECT_NO_THROW(open_pretrained(dir.str(), a));
  for (const int64_t different : {int64_t{0}, int64_t{65536}, n - 1}) {
    write_tied_model(dir, a, shape, different);
    expect_refused([&] { open_pretrained(dir.str(), a); }, ExitCode::bad_file,
                   {"lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings"});
    Architecture untied = a;
    untied.tied_embeddings = false;
    EXPECT_NO_THROW(open_pretrained(dir.str(), untied));
  }
  write_tied_model(dir, a, {a.vocab_size - 1, a.hidden_size}, -1);
  expect_refused([&] { open_pretrained(dir.str(), a); }, ExitCode::bad_file, {"lm_head.weight"});
}

}  // namespace
}  // namespace utrain
