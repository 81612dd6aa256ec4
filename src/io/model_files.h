// The weights of a Hugging Face model directory: model.safetensors, or else the shards that
// model.safetensors.index.json names (of both, transformers too takes the single file). A shard is
// a plain file name that resolves inside the directory, or inside the `blobs` of the hub cache it
// is a snapshot of. Pickled weights (*.bin) are never read.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace utrain {

class ModelFiles {
 public:
  // No such directory: usage; no or bad weights: bad_file.
  explicit ModelFiles(const std::string& dir);

  const StoredTensor* find(const std::string& name) const;  // nullptr where absent
  // bad_file where it is missing, of another shape, or of a dtype that read_elements does not
  // convert.
  const StoredTensor& at(const std::string& name, const std::vector<int64_t>& shape) const;
  std::vector<std::string> names() const;  // sorted
  int64_t total_bytes() const { return total_bytes_; }

 private:
  void open_sharded(const std::string& index_path);

  std::string dir_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const StoredTensor*> tensors_;
  std::map<std::string, std::string> file_of_;
  int64_t total_bytes_ = 0;
};

}  // namespace utrain
