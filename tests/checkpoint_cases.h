// Checkpoints for tests: a small layout with one- and two-dimensional tensors and padding, its
// values, how ranks cut it, and saving it as a run would, without MPI.
#pragma once

#include <map>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/read.h"
#include "checkpoint/write.h"
#include "core/flat_block.h"
#include "io_files.h"

namespace utrain {

// Three units: odd sizes, so that slices end within rows, and padding before and after.
inline TrainableLayout small_layout() {
  TrainableLayout layout;
  const auto add = [&](const std::string& name, int64_t rows, int64_t cols, int dims,
                       bool aligned) {
    Trainable tensor;
    tensor.name = name;
    tensor.rows = rows;
    tensor.cols = cols;
    tensor.dims = dims;
    layout.add(tensor, aligned);
  };
  for (const std::string layer : {"layers.0", "layers.1"}) {
    add(layer + ".q_proj.lora_A.weight", 7, 333, 2, true);
    add(layer + ".q_proj.lora_B.weight", 250, 7, 2, true);
    add(layer + ".norm.weight", 1, 90, 1, false);
    layout.end_unit();
  }
  add("lm_head.weight", 3, 2000, 2, true);
  layout.end_unit();
  return layout;
}

// Values of the whole flat buffer; of parameters the padding is zero.
struct FlatState {
  std::vector<float> parameters, m, v;

  FlatState(const TrainableLayout& layout, uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto draw = [&] { return static_cast<float>(random() >> 40) * 1e-5f - 50.0f; };
    const size_t n = static_cast<size_t>(layout.n_elem());
    for (std::vector<float>* array : {&parameters, &m, &v}) {
      array->resize(n);
      for (float& x : *array) x = draw();
    }
  }
};

// Every unit in one slice a rank, in whole blocks, as the strategies cut it: some are empty.
inline std::vector<std::vector<Slice>> cut(const TrainableLayout& layout, int ranks) {
  std::vector<std::vector<Slice>> slices(static_cast<size_t>(ranks));
  for (int64_t u = 0; u < layout.n_units(); ++u) {
    const int64_t begin = layout.unit_begin()[static_cast<size_t>(u)];
    const int64_t blocks = (layout.unit_begin()[static_cast<size_t>(u) + 1] - begin) / kFlatBlock;
    for (int64_t r = 0; r < ranks; ++r) {
      const int64_t first = blocks * r / ranks, last = blocks * (r + 1) / ranks;
      slices[static_cast<size_t>(r)].push_back(
          {begin + first * kFlatBlock, (last - first) * kFlatBlock});
    }
  }
  return slices;
}

// A rank's slices of an array, one after another.
inline std::vector<float> part_of(const std::vector<float>& array,
                                  const std::vector<Slice>& slices) {
  std::vector<float> part;
  for (const Slice& slice : slices)
    part.insert(part.end(), array.begin() + slice.begin,
                array.begin() + slice.begin + slice.n_elem);
  return part;
}

inline FileFacts save_shard(const std::string& temp, const FlatState& state, int rank,
                            const std::vector<std::vector<Slice>>& slices) {
  const std::vector<Slice>& own = slices[static_cast<size_t>(rank)];
  const std::vector<float> parameters = part_of(state.parameters, own), m = part_of(state.m, own),
                           v = part_of(state.v, own);
  return write_shard(temp, rank, static_cast<int>(slices.size()),
                     {own, parameters.data(), m.data(), v.data()});
}

struct SaveOptions {
  int ranks = 3;
  Json eval_loss = {};  // null: none
  bool adapter = true;
};

inline Json state_of(int64_t step, const Json& eval_loss) {
  Json state = Json::object();
  state.set("step", step).set("eval_loss", eval_loss).set("scaler", 65536.0);
  return state;
}

// The whole of a save; returns the checkpoint's path.
inline std::string save(const std::string& folder, int64_t step, const TrainableLayout& layout,
                        const FlatState& flat, const SaveOptions& options = {}) {
  const std::string temp = begin_checkpoint(folder, step, layout.n_elem() * 12);
  CheckpointContents contents;
  contents.step = step;
  contents.layout = &layout;
  contents.slices = cut(layout, options.ranks);
  for (int rank = 0; rank < options.ranks; ++rank)
    contents.shards.push_back(save_shard(temp, flat, rank, contents.slices));
  contents.state = state_of(step, options.eval_loss);
  if (options.adapter)
    contents.write_output = [](const std::string& dir, const std::vector<float>& parameters,
                               const FileSign&) {
      std::filesystem::create_directory(dir + "/adapter");
      write_bytes(dir + "/adapter/adapter_config.json", "{\"r\": 7}\n");
      write_bytes(dir + "/adapter/adapter_model.safetensors",
                  std::string(reinterpret_cast<const char*>(parameters.data()), 5000));
    };
  return commit_checkpoint(temp, contents);
}

// All of an array, read as `ranks` ranks would: each its own slices.
inline std::vector<float> read_all(const Checkpoint& checkpoint, Checkpoint::Array array,
                                   const TrainableLayout& layout, int ranks = 1) {
  std::vector<float> values(static_cast<size_t>(checkpoint.n_elem()), -1.0f);
  for (const std::vector<Slice>& of_rank : cut(layout, ranks))
    for (const Slice& slice : of_rank) checkpoint.read(array, slice, values.data() + slice.begin);
  return values;
}

// What a resume does: opens, verifies, reads everything.
inline void load(const std::string& path, const TrainableLayout& layout) {
  const Checkpoint checkpoint(path);
  checkpoint.verify();
  for (const auto array :
       {Checkpoint::Array::parameters, Checkpoint::Array::m, Checkpoint::Array::v})
    read_all(checkpoint, array, layout);
}

inline std::vector<std::string> names_in(const std::string& dir) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace utrain
