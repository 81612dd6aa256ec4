// c = alpha * op(a) op(b) + beta * c through cuBLASLt, the only user of it. alpha is a number, or
// lies on the device (DeviceFactor).
//   matmul_nt  c [m, n] = a [m, k] b [n, k]'      y = x W'
//   matmul_nn  c [m, n] = a [m, k] b [k, n]       dx = dy W
//   matmul_tn  c [m, n] = a [k, m]' b [k, n]      dA = dxa' x
//   a and b of one dtype (f32, bf16, f16), c of the same or float32. Any ld and alignment. beta =
//   0: c is not read. Accumulates in float32, float32 inputs without TF32. Equal calls give equal
//   bits: the algorithm is a function of the shape alone, and parts of a split k are summed in a
//   step of their own.          CPU twin: src/cpu/matmul.h
#pragma once

#include <cublasLt.h>

#include <array>
#include <map>
#include <memory>

#include "core/tensor.h"

namespace utrain::cuda {

enum class Transpose { no, yes };

// An alpha that is computed on the device, before which no host waits: {alpha, 0, 1} there, because
// beta must then lie on the device too.
struct DeviceFactor {
  const float* values = nullptr;
};

struct Product {
  Tensor c, a, b;
  Transpose transpose_a, transpose_b;
  int64_t k;
  float alpha, beta;
  Tensor bias = {};  // [1, n] in c's dtype, added to every row; beta = 0, see takes_bias()
  DeviceFactor device_alpha = {};  // instead of alpha, where not null; beta is 0 or 1
};

// cuBLASLt on one stream: a handle, its workspace, and one plan for each kind of product met so
// far. One thread at a time.
class Blas {
 public:
  static constexpr int64_t kWorkspaceBytes = 64 << 20;

  // workspace: kWorkspaceBytes of device memory, 256-byte aligned, that only this object's products
  // use.
  Blas(cudaStream_t stream, void* workspace);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  void matmul(const Product& product);
  cudaStream_t stream() const { return stream_; }

 private:
  struct Plan;
  using Key = std::array<int64_t, 16>;
  static Key key_of(const Product& product);
  Plan& plan_of(const Product& product);
  std::unique_ptr<Plan> make_plan(const Product& product) const;

  cudaStream_t stream_;
  void* workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

// Whether cuBLASLt adds this bias as it writes c: both must allow 16-byte vectors.
bool takes_bias(const Tensor& c, const Tensor& bias);

void matmul_nt(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, float alpha = 1.0f,
               float beta = 0.0f);
void matmul_nn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, float alpha = 1.0f,
               float beta = 0.0f);
void matmul_tn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, float alpha = 1.0f,
               float beta = 0.0f);
// The same with alpha on the device.
void matmul_nn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, DeviceFactor alpha,
               float beta);
void matmul_tn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, DeviceFactor alpha,
               float beta);
// c = a b' + bias
void matmul_nt_bias(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b,
                    const Tensor& bias);

}  // namespace utrain::cuda
