// Values whose order of adding shows in the bits, and tensors of them on a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "backend.h"
#include "comm/collectives.h"
#include "core/convert.h"

namespace utrain {

template <class T>
inline constexpr T kPoison = static_cast<T>(NAN);

// Values of mixed sign and magnitude, so that another order of adding shows in the bits.
template <class T>
std::vector<T> part(int rank, int64_t n) {
  std::vector<T> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    uint64_t x = static_cast<uint64_t>(i) * 2654435761u + static_cast<uint64_t>(rank) * 40503u + 17;
    x ^= x >> 29, x *= 0xbf58476d1ce4e5b9u, x ^= x >> 32;
    const double mantissa = static_cast<double>(x % 1000003) / 1000003.0 - 0.5;
    values[static_cast<size_t>(i)] =
        static_cast<T>(std::ldexp(mantissa, static_cast<int>(x >> 40) % 12));
  }
  return values;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
Tensor view(std::vector<T>& x) {
  return make_tensor(x.data(), dtype_of<T>, 1, std::ssize(x));
}

template <class T>
std::vector<T> slice_of(const std::vector<T>& x, int rank, int ranks) {
  const int64_t n = std::ssize(x);
  return {x.begin() + Collectives::slice_begin(n, rank, ranks),
          x.begin() + Collectives::slice_begin(n, rank + 1, ranks)};
}

// Tensors on the GPU, from and to the host in the order of the backend's calls.
class DeviceTensors {
 public:
  explicit DeviceTensors(int device) : backend_(make_cuda_backend(DType::f32, device)) {}
  Backend& backend() { return *backend_; }

  // n elements; the memory begins offset elements behind what is aligned.
  template <class T>
  Tensor tensor(int64_t n, int64_t offset = 0) {
    const int64_t bytes = (n + offset) * static_cast<int64_t>(sizeof(T));
    void* memory = backend_->allocate(std::max<int64_t>(bytes, 1));
    return make_tensor(static_cast<T*>(memory) + offset, dtype_of<T>, 1, n);
  }
  template <class T>
  void write(const Tensor& x, const std::vector<T>& values) {
    backend_->upload(x.data, values.data(), std::ssize(values) * static_cast<int64_t>(sizeof(T)));
  }
  template <class T>
  std::vector<T> read(const Tensor& x) {
    std::vector<T> values(static_cast<size_t>(x.n_elem()));
    backend_->download(values.data(), x.data, x.n_elem() * static_cast<int64_t>(sizeof(T)));
    return values;
  }

 private:
  std::unique_ptr<Backend> backend_;
};

}  // namespace utrain
