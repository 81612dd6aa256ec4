// The base: ONE byte image per layer and one for the ends (embedding, final norm, head). An image
// is what memory, the loader, shards and gathers know: matrices of a group fused row after row,
// every group on a block of elements (core/flat_block.h), the whole of whole blocks. layout -> fill
// any byte range of an image from the files
// -> views of it as the model's operations take them.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "core/projection.h"
#include "model/architecture.h"

namespace utrain {

// One tensor of the files inside an image: rows of cols elements, contiguous.
struct ImagePart {
  std::string name;    // Hugging Face's
  int64_t offset = 0;  // bytes
  int64_t rows = 0, cols = 0;
};

struct ImageLayout {
  DType dtype = DType::f32;
  std::vector<ImagePart> parts;  // ascending offset
  int64_t bytes = 0;             // whole blocks of elements

  int64_t n_elem() const { return bytes / size_of(dtype); }
};

ImageLayout layer_image(const Architecture& architecture, int64_t layer, DType dtype);
ImageLayout ends_image(const Architecture& architecture, DType dtype);

// Where elements of the base come from. Several threads read at a time.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // out[0, n) = elements [first, first + n) of a tensor in dtype.
  virtual void read(const std::string& name, int64_t first, int64_t n, DType dtype,
                    void* out) const = 0;
  // They will be read soon: a source on a disk starts to fetch them.
  virtual void prefetch(const std::string& /*name*/, int64_t /*first*/, int64_t /*n*/) const {}
};

// The files of a Hugging Face directory; names and shapes are checked against the architecture
// here, before any memory is taken, and that a head in them is the embedding it is tied to.
std::unique_ptr<WeightSource> open_pretrained(const std::string& model_dir,
                                              const Architecture& architecture);
// model.init = "random": N(0, initializer_range), norms 1, biases 0; a function of (seed, name,
// element).
std::unique_ptr<WeightSource> random_weights(const Architecture& architecture, uint64_t seed);

// Bytes [begin, end) of the image, to out (host), by all threads. Padding between parts is zero.
void fill_image(const ImageLayout& layout, const WeightSource& source, int64_t begin, int64_t end,
                void* out);

struct LayerWeights {
  Tensor input_norm, post_attention_norm;  // [1, C]
  Tensor q_norm, k_norm;                   // [1, D]; empty without qk_norm
  std::array<Tensor, 4> W;                 // by Group: [out, in]
  std::array<Tensor, 4> bias;              // by Group: [1, out], or empty
};

struct EndWeights {
  Tensor embedding;   // [V, C]
  Tensor final_norm;  // [1, C]
  Tensor head;        // [V, C]; the embedding where the model ties them
};

// Views of an image whose bytes lie, or will lie, at image.data.
LayerWeights layer_views(const Architecture& architecture, int64_t layer, const ImageLayout& layout,
                         const Tensor& image);
EndWeights end_views(const Architecture& architecture, const ImageLayout& layout,
                     const Tensor& image);

// The images of all units: the layers, then the ends.
std::vector<ImageLayout> image_layouts(const Architecture& architecture, DType dtype);

// Bytes [begin, end) of an image go to `to`.
struct ImageSlice {
  const ImageLayout* layout = nullptr;
  void* to = nullptr;
  int64_t begin = 0, end = 0;
  bool in_host = false;  // `to` is host memory: it is filled without a detour
};
// Reads them all. Not collective. For the device, the host holds two pieces of an image at a time.
void load_images(const std::vector<ImageSlice>& slices, const WeightSource& source,
                 Backend& backend);

// Views of all images, at fixed addresses; of weights, or of their gradients in another dtype.
class Weights {
 public:
  // images [units]: [1, elements] each, as image_layouts(architecture, their dtype) lays them out.
  void bind(const Architecture& architecture, const std::vector<Tensor>& images);

  const LayerWeights& layer(int64_t l) const { return layers_.at(static_cast<size_t>(l)); }
  const EndWeights& ends() const { return ends_; }

 private:
  std::vector<LayerWeights> layers_;
  EndWeights ends_;
};

}  // namespace utrain
