// The base as images: any slice of one equals that part of the whole, parts lie where the layout
// says with zeros between them, and a head that contradicts tied embeddings is refused.
#include "model/weights.h"

#include <algorithm>
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
