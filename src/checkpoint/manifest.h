// manifest.json: what a checkpoint is made of. Everything in it is checked here, so that whoever
// has one may count on it: names plain and each once, the shards first and in rank order, the
// slices covering the flat buffer once, shards large enough for theirs.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/write.h"

namespace utrain {

struct Manifest {
  int64_t step = 0;
  int64_t n_elem = 0;                      // of the flat buffer
  std::vector<std::vector<Slice>> slices;  // [ranks]
  std::vector<FileFacts> files;            // shards, index.h5, state.json, others

  int ranks() const { return static_cast<int>(slices.size()); }
  const FileFacts& state() const;  // of state.json
};

std::string to_text(const Manifest& manifest);
Manifest parse_manifest(const std::string& text, const std::string& where);

// Empty where the slices of all ranks cover [0, n_elem) once, each rank's in ascending order;
// otherwise what is wrong.
std::string fault_of_slices(const std::vector<std::vector<Slice>>& slices, int64_t n_elem);

}  // namespace utrain
