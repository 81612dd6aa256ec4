// index.h5: /parameters/NAME, /m/NAME, /v/NAME for each trainable tensor, whole and in its shape, as
// virtual data sets over the shards beside it. Attribute `offset` of each: its first element in the
// flat buffer.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/slice.h"
#include "io/hdf5_writer.h"
#include "model/trainable.h"

namespace utrain {

// Which rectangles of a tensor lie where; slices [ranks].
std::vector<VirtualPiece> pieces_of(const Trainable& tensor,
                                    const std::vector<std::vector<Slice>>& slices);

void write_index(const std::string& path, int64_t step, const TrainableLayout& layout,
                 const std::vector<std::vector<Slice>>& slices, const FileSign& sign = {});

}  // namespace utrain
