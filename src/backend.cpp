#include "backend.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace utrain {

namespace {

constexpr std::align_val_t kAlignment{256};

}  // namespace

std::shared_ptr<void> Backend::allocate_host(int64_t bytes) {
  void* memory = ::operator new(static_cast<size_t>(bytes), kAlignment);
  return {memory, [](void* p) { ::operator delete(p, kAlignment); }};
}

int64_t Backend::copy_in_begin(void* device, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
  return 0;
}

int64_t Backend::copy_out_begin(void* host, const void* device, int64_t bytes) {
  if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
  return 0;
}

std::unique_ptr<Backend> Backend::make_host_backend() const {
  return make_cpu_backend(trainable_dtype());
}

}  // namespace utrain
