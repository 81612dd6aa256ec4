// One rank's shard: `parameters`, `m`, `v` (float32, its slices one after another), `slices` [k, 2]
// (first element and size of each), and the attributes format_version, rank, ranks.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/slice.h"
#include "io/hdf5.h"

namespace utrain {

// A shard open for reading. Every fault fails with code and names file and data set.
class ShardReader {
 public:
  // slices: as the manifest has them; the shard must have the same.
  ShardReader(const std::string& dir, int rank, int ranks, const std::vector<Slice>& slices,
              ExitCode code);

  // What of wanted this shard holds, to its place in out [wanted.n_elem].
  void read(const std::string& array, const Slice& wanted, float* out) const;
  static bool overlap(const std::vector<Slice>& slices, const Slice& wanted);

 private:
  const std::vector<Slice>& slices_;
  Hdf5Reader file_;
};

}  // namespace utrain
