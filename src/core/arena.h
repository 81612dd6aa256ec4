// All memory of a run, declared before the first step, laid out once and allocated in one call each
// on the device and on the host: what does not fit shows at start-up. The same declarations give
// the memory table.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace utrain {

// host: what is offloaded and the copy that checkpoints are written from, in host memory; all else
// is the device's.
enum class MemoryClass { base, adapters, gradients, optimizer, activations, workspace, host };
inline constexpr std::array<MemoryClass, 7> kMemoryClasses = {
    MemoryClass::base,      MemoryClass::adapters,    MemoryClass::gradients,
    MemoryClass::optimizer, MemoryClass::activations, MemoryClass::workspace,
    MemoryClass::host};
std::string_view name_of(MemoryClass memory_class);

// When a buffer is live. Buffers of different phases share the same bytes; those of `run` share
// with nobody.
enum class Lifetime { run, forward, head, backward };

class Arena {
 public:
  using Id = int;

  // A [rows, cols] buffer; ld = cols. Its memory starts on 256 bytes and is known after place().
  Id declare(std::string name, DType dtype, int64_t rows, int64_t cols, MemoryClass memory_class,
             Lifetime lifetime = Lifetime::run);

  int64_t bytes() const;  // what place() needs of the device
  int64_t host_bytes() const { return bytes(MemoryClass::host); }  // and of the host
  // The share of a class; what phases share counts as workspace, once.
  int64_t bytes(MemoryClass memory_class) const;

  // memory: bytes() bytes, host_memory: host_bytes() bytes, both 256-byte aligned.
  void place(void* memory, void* host_memory = nullptr);
  Tensor operator[](Id id) const;

 private:
  struct Buffer {
    std::string name;
    DType dtype;
    int64_t rows, cols, offset;
    MemoryClass memory_class;
    Lifetime lifetime;
  };
  int64_t phase_bytes() const;  // of the largest phase
  int64_t& used(MemoryClass memory_class, Lifetime lifetime);

  std::vector<Buffer> buffers_;
  std::array<int64_t, 4> used_ = {};  // of the device, by Lifetime
  int64_t host_used_ = 0;
  char* memory_ = nullptr;
  char* host_memory_ = nullptr;
};

}  // namespace utrain
