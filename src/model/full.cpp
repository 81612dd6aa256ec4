#include "model/full.h"

#include "core/flat_block.h"

namespace utrain {

TrainableLayout full_layout(const Architecture& architecture) {
  TrainableLayout layout;
  for (const ImageLayout& image : image_layouts(architecture, DType::f32)) {
    const int64_t begin = layout.n_elem();
    for (const ImagePart& part : image.parts) {
      const int64_t offset = part.offset / size_of(image.dtype);
      layout.add(
          {.name = part.name, .rows = part.rows, .cols = part.cols, .dims = part.rows == 1 ? 1 : 2},
          offset % kFlatBlock == 0);
      ASSERT(layout.tensors().back().offset == begin + offset);
    }
    layout.end_unit();
    ASSERT(layout.n_elem() == begin + image.n_elem());
  }
  return layout;
}

}  // namespace utrain
