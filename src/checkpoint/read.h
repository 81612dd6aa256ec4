// Reading checkpoints (see write.h). Nothing in one is trusted: names, sizes, hashes and shapes are
// checked before a value is used. Damage is Error(no_checkpoint) with file and data set.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/write.h"

namespace utrain {

class ShardReader;

struct CheckpointPlace {
  std::string path;
  int64_t step = 0;
};

// Those in folder that are named as one, newest first, with COMMITTED or damaged; not what a killed
// save left. Empty where folder is missing.
std::vector<CheckpointPlace> list_checkpoints(const std::string& folder);

class Checkpoint {
 public:
  // Opens manifest and state; checks that every file is there with its size. `missing`: the code
  // where path does not exist.
  explicit Checkpoint(const std::string& path, ExitCode missing = ExitCode::no_checkpoint);

  const std::string& path() const { return path_; }
  int64_t step() const { return step_; }
  int ranks() const { return ranks_; }          // that wrote it
  int64_t n_elem() const { return n_elem_; }    // of the flat buffer
  const Json& state() const { return state_; }  // state.json
  const std::vector<FileFacts>& files() const { return files_; }

  // Reads every file whose index in files() is part, part + parts, ...: the ranks share the work.
  void verify(int part = 0, int parts = 1) const;

  enum class Array { parameters, m, v };  // indexes kArrayNames
  // out [slice.n_elem] = that slice, from whichever shards hold it.
  void read(Array array, const Slice& slice, float* out) const;
  // All three of it, for which each shard is opened once.
  void read(const Slice& slice, float* parameters, float* m, float* v) const;

 private:
  using Work = std::function<void(const ShardReader& shard)>;
  void open_shards(const Slice& slice, const Work& work) const;  // those that hold some of it

  std::string path_;
  int64_t step_ = 0, n_elem_ = 0;
  int ranks_ = 0;
  Json state_;
  std::vector<FileFacts> files_;
  std::vector<std::vector<Slice>> slices_;  // [ranks]
};

}  // namespace utrain
