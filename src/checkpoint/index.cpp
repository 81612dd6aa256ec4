#include "checkpoint/index.h"

#include <algorithm>

#include "checkpoint/files.h"

namespace utrain {

namespace {

// A run [begin, begin + n) of a row-major [rows, cols]: the end of a row, whole rows, the start of
// one. piece: of its first element.
void add_rectangles(int64_t begin, int64_t n, int64_t cols, VirtualPiece piece,
                    std::vector<VirtualPiece>& pieces) {
  while (n > 0) {
    const int64_t row = begin / cols, col = begin % cols;
    const bool whole = col == 0 && n >= cols;
    const int64_t rows = whole ? n / cols : 1;
    const int64_t width = whole ? cols : std::min(n, cols - col);
    piece.begin = {row, col};
    piece.count = {rows, width};
    pieces.push_back(piece);
    piece.source_begin += rows * width;
    begin += rows * width;
    n -= rows * width;
  }
}

}  // namespace

std::vector<VirtualPiece> pieces_of(const Trainable& tensor,
                                    const std::vector<std::vector<Slice>>& slices) {
  std::vector<VirtualPiece> pieces;
  for (size_t rank = 0; rank < slices.size(); ++rank) {
    VirtualPiece piece;
    piece.file = shard_name(static_cast<int64_t>(rank), static_cast<int64_t>(slices.size()));
    for (const Slice& slice : slices[rank]) piece.n_source += slice.n_elem;
    int64_t in_shard = 0;
    for (const Slice& slice : slices[rank]) {
      const int64_t begin = std::max(slice.begin, tensor.offset);
      const int64_t end = std::min(slice.begin + slice.n_elem, tensor.offset + tensor.n_elem());
      piece.source_begin = in_shard + begin - slice.begin;
      add_rectangles(begin - tensor.offset, end - begin, tensor.cols, piece, pieces);
      in_shard += slice.n_elem;
    }
  }
  if (tensor.dims == 1)
    for (VirtualPiece& piece : pieces) {
      piece.begin.erase(piece.begin.begin());
      piece.count.erase(piece.count.begin());
    }
  return pieces;
}

void write_index(const std::string& path, int64_t step, const TrainableLayout& layout,
                 const std::vector<std::vector<Slice>>& slices, const FileSign& sign) {
  Hdf5Writer file(path, sign);
  file.attribute("format_version", kCheckpointFormat);
  file.attribute("step", step);
  for (const char* array : kArrayNames) file.group(array);
  for (const Trainable& tensor : layout.tensors()) {
    const std::vector<VirtualPiece> pieces = pieces_of(tensor, slices);
    for (const std::string array : kArrayNames) {
      const std::string name = array + "/" + tensor.name;
      file.write_virtual(name, tensor.shape(), array, pieces);
      file.attribute("offset", tensor.offset, name);
    }
  }
  file.close();
}

}  // namespace utrain
