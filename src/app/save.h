// What training leaves: an adapter as PEFT has it, or a whole model as Hugging Face has it.
#pragma once

#include <string>
#include <vector>

#include "comm/world.h"
#include "io/file.h"
#include "train/trainer.h"

namespace utrain {

// adapter_config.json and adapter_model.safetensors, float32, as PEFT has them; then read back and
// compared: finite, and a warning where every B is zero. Returns the number of tensors.
// parameters: flat, as layout says.
int64_t save_adapter(const std::string& dir, const TrainableLayout& layout,
                     const std::vector<float>& parameters, const Config& config,
                     const FileSign& sign = {});

// The trained model as a Hugging Face directory in `dtype`: model.safetensors, or shards of at most
// 5 GB with their index; config.json with that dtype, and the tokenizer's files of `source`.
// Collective: a unit at a time is gathered, and written by rank 0. All ranks fail alike, with io;
// where a weight is not finite, all return its tensor's name, and no directory is left.
struct SavedModel {
  int64_t n_tensors = 0;
  std::string not_finite;  // empty: the model is written
};
SavedModel save_model(const std::string& dir, const std::string& source, DType dtype,
                      Trainer& trainer, const World& world);

}  // namespace utrain
