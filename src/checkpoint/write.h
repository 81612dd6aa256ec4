// A checkpoint is a directory RUN/checkpoints/step-00000100 that appears whole or not at all:
//   shard-00000-of-00004.h5 ...  of each rank: its slices of parameters and Adam's moments
//   index.h5      every logical tensor whole, by virtual data sets over the shards
//   state.json    step, optimizer, configuration, fingerprint
//   adapter/      PEFT, loadable as it is (LoRA alone)
//   manifest.json name, bytes and XXH3 of each file
//   COMMITTED     written last; a directory without it is none
// Rank 0 begins and commits, every rank writes its shard in between. No MPI in here: all of it may
// run on a thread beside the training. The order of writing is the promise: every file synced, then
// the manifest, COMMITTED, the directory, and the rename to the final name. sign: told of every MB
// and every sync.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/slice.h"
#include "io/file.h"
#include "io/json.h"
#include "model/trainable.h"

namespace utrain {

// One file of a checkpoint, as the manifest has it.
struct FileFacts {
  std::string name;  // in the checkpoint's directory: "shard-00000-of-00004.h5"
  int64_t bytes = 0;
  std::string xxh3;  // XXH3-128, 32 hexadecimal digits

  Json to_json() const;
  static FileFacts from_json(const Json& json, const std::string& where);
};

// The name of step's directory: "step-00000100".
std::string checkpoint_name(int64_t step);

// Rank 0. folder: RUN/checkpoints, made where it is missing. What a killed save left there is
// removed; a file system with too little room for `bytes` fails before anything is written. Returns
// the new temporary directory. Fails with io.
std::string begin_checkpoint(const std::string& folder, int64_t step, int64_t bytes,
                             const FileSign& sign = {});

// Every rank, into rank 0's temporary directory; synced and read back. Fails with io.
FileFacts write_shard(const std::string& temp, int rank, int ranks, const ShardState& state,
                      const FileSign& sign = {});

// What rank 0 adds to the shards.
struct CheckpointContents {
  int64_t step = 0;
  const TrainableLayout* layout = nullptr;
  std::vector<FileFacts> shards;           // [ranks]
  std::vector<std::vector<Slice>> slices;  // [ranks], as given to write_shard
  Json state;                              // state.json: an object
  // Writes what else belongs into dir, e.g. adapter/, from all parameters [layout->n_elem()], which
  // are read back from the shards. Empty: nothing.
  std::function<void(const std::string& dir, const std::vector<float>& parameters,
                     const FileSign& sign)>
      write_output;
};

// Rank 0, once all shards are there: makes temp the checkpoint, and LATEST name it. A checkpoint of
// the same step that is there already is replaced. Returns its path. Fails with io.
std::string commit_checkpoint(const std::string& temp, const CheckpointContents& contents,
                              const FileSign& sign = {});

// Rank 0, instead of that, when nobody writes any more: removes temp, which may be empty. What cannot
// be removed is left over.
void abandon_checkpoint(const std::string& temp, const FileSign& sign = {});

// Removes all but the newest `keep` checkpoints and the one with the lowest eval_loss in its
// state.json. A directory is renamed before it is removed, so that none is ever half there.
void retain_checkpoints(const std::string& folder, int64_t keep, const FileSign& sign = {});

}  // namespace utrain
