// The sum of gradients over ranks while the backward pass still runs: layers are final from the
// last to the first, and as soon as enough of them are, their part of the flat buffer goes on its
// way. All ranks make the same calls in the same order. The sums are those of one call at the end,
// to the bit: see collectives.h.
#pragma once

#include <vector>

#include "comm/collectives.h"

namespace utrain {

class GradientReduction {
 public:
  // layer_begin [L + 1]: first element of each layer in the flat buffer, and its end. A part has at
  // least bucket_elems elements, but for the last one.
  GradientReduction(Collectives& collectives, std::vector<int64_t> layer_begin,
                    int64_t bucket_elems = kBucketElems);

  void begin(const Tensor& gradients);  // [1, n], of the step that starts
  void layer_is_final(int64_t l);       // L - 1, ..., 0
  void finish();  // what follows sees the sums; layers not told of yet are final too

 private:
  // 16 MB: some hundred microseconds of a link, so that few layers wait for the end.
  static constexpr int64_t kBucketElems = int64_t{4} << 20;

  Collectives& collectives_;
  std::vector<int64_t> layer_begin_;
  int64_t bucket_elems_;
  Tensor gradients_;
  int64_t next_layer_ = -1;  // the layer that is to become final
  int64_t end_ = 0;          // of what has not been sent yet
};

}  // namespace utrain
