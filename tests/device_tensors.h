// Tensors on a GPU, of values whose order of adding shows in the bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "backend.h"
#include "comm/collectives.h"
#include "core/convert.h"
#include "rank_values.h"

namespace utrain {

template <class T>
inline constexpr T kPoison = static_cast<T>(NAN);

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
