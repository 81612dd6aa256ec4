// --dump FILE: forward and backward of the first global batch as one safetensors file: loss,
// logits.D, grad.<PEFT name>.
#pragma once

#include <string>

#include "comm/world.h"
#include "train/trainer.h"

namespace utrain {

// Collective. Logits are left out where vocabulary x tokens reaches 2^28.
void write_dump(const std::string& path, const Job& job, Trainer& trainer, const World& world);

}  // namespace utrain
