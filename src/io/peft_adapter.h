// A PEFT LoRA adapter directory: adapter_config.json and adapter_model.safetensors.
//   Plain LoRA on the seven projections is read; every other option of PEFT is refused by its name
//   (bad_file). lora_A [r, in], lora_B [out, r], float32; y += scaling * B A x.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/projection.h"
#include "io/safetensors.h"

namespace utrain {

struct AdapterConfig {
  int64_t r = 0;
  double alpha = 0.0;
  double dropout = 0.0;
  bool use_rslora = false;
  std::vector<std::string> target_modules;  // in the order of kProjections
  std::string base_model_name_or_path;
};

AdapterConfig read_adapter_config(
    const std::string& dir);  // no such directory: usage; anything else: bad_file
void write_adapter_config(const std::string& dir,
                          const AdapterConfig& config);  // atomically; Error(io)

// dir/adapter_model.safetensors. Missing: bad_file.
SafetensorsFile open_adapter_weights(const std::string& dir);
std::string adapter_weights_path(const std::string& dir);

// "base_model.model.model.layers.L.self_attn.q_proj.lora_A.weight"; matrix 'A' or 'B'.
std::string adapter_tensor_name(int64_t layer, Projection projection, char matrix);

}  // namespace utrain
