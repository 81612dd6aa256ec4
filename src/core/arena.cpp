#include "core/arena.h"

#include <algorithm>

namespace utrain {

namespace {

int64_t aligned(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

std::string_view name_of(MemoryClass memory_class) {
  switch (memory_class) {
    case MemoryClass::base: return "base";
    case MemoryClass::adapters: return "adapters";
    case MemoryClass::gradients: return "gradients";
    case MemoryClass::optimizer: return "optimizer";
    case MemoryClass::activations: return "activations";
    case MemoryClass::workspace: return "workspace";
    case MemoryClass::host: return "host";
  }
  return "?";
}

Arena::Id Arena::declare(std::string name, DType dtype, int64_t rows, int64_t cols,
                         MemoryClass memory_class, Lifetime lifetime) {
  ASSERT(memory_ == nullptr && rows >= 0 && cols >= 0);
  int64_t& used = this->used(memory_class, lifetime);
  buffers_.push_back({std::move(name), dtype, rows, cols, used, memory_class, lifetime});
  used += aligned(rows * cols * size_of(dtype));
  return static_cast<Id>(buffers_.size()) - 1;
}

int64_t& Arena::used(MemoryClass memory_class, Lifetime lifetime) {
  if (memory_class != MemoryClass::host) return used_[static_cast<size_t>(lifetime)];
  ASSERT(lifetime == Lifetime::run);
  return host_used_;
}

int64_t Arena::phase_bytes() const {
  return *std::max_element(used_.begin() + 1, used_.end());
}

int64_t Arena::bytes() const {
  return used_[0] + phase_bytes();
}

int64_t Arena::bytes(MemoryClass memory_class) const {
  int64_t sum = memory_class == MemoryClass::workspace ? phase_bytes() : 0;
  for (const Buffer& b : buffers_) {
    if (b.lifetime == Lifetime::run && b.memory_class == memory_class) {
      sum += aligned(b.rows * b.cols * size_of(b.dtype));
    }
  }
  return sum;
}

void Arena::place(void* memory, void* host_memory) {
  ASSERT(memory_ == nullptr && reinterpret_cast<uintptr_t>(memory) % 256 == 0);
  ASSERT(reinterpret_cast<uintptr_t>(host_memory) % 256 == 0);
  ASSERT(host_memory != nullptr || host_used_ == 0);
  memory_ = static_cast<char*>(memory);
  host_memory_ = static_cast<char*>(host_memory);
}

Tensor Arena::operator[](Id id) const {
  const Buffer& b = buffers_.at(static_cast<size_t>(id));
  ASSERT(memory_ != nullptr);
  if (b.memory_class == MemoryClass::host)
    return make_tensor(host_memory_ + b.offset, b.dtype, b.rows, b.cols);
  const int64_t phase = b.lifetime == Lifetime::run ? 0 : used_[0];
  return make_tensor(memory_ + phase + b.offset, b.dtype, b.rows, b.cols);
}

}  // namespace utrain
