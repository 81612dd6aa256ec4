// What the tests of CUDA share: an operation on the GPU against the CPU in double, on inputs that
// the GPU's dtype holds exactly. CudaOperands has the interface of Operands (oracle.h), so that one
// template runs a call on both:
//   template <class Backing>
//   Matrix run(Backing&& operands) { ... operands.backend().op(...); return operands.read(y); }
//   expect_close(run(CudaOperands(dtype)), run(Operands(DType::f64)),
//                cuda_bound(dtype, tolerance::kFloatMatmul));
// The padding between rows decides between the paths of a kernel: 3 breaks 16-byte vectors, 8
// allows them.
#pragma once

#include <vector>

#include "core/convert.h"
#include "needs_gpu.h"
#include "oracle.h"

namespace utrain {

inline constexpr DType kCudaDTypes[] = {DType::f32, DType::bf16, DType::f16};
inline constexpr int64_t kCudaPaddings[] = {3, 8};

// The values a tensor of this dtype would hold.
inline Matrix rounded(DType dtype, Matrix x) {
  for (Complex& value : x.values) {
    const float wide = static_cast<float>(value.real());
    char element[4];
    float narrow = 0.0f;
    from_float(dtype, &wide, 1, element);
    to_float(dtype, element, 1, &narrow);
    value = static_cast<double>(narrow);
  }
  return x;
}

// NMSE allowed where the output is of this dtype: float32 as on the CPU, else the rounding of the
// output.
inline double cuda_bound(DType dtype, double float_bound) {
  return dtype == DType::f32    ? float_bound
         : dtype == DType::bf16 ? tolerance::kBf16
                                : tolerance::kF16;
}

class CudaOperands {
 public:
  explicit CudaOperands(DType dtype, int64_t padding = 3, const CudaOptions& options = {})
      : backend_(make_cuda_backend(dtype, 0, options)), padding_(padding) {}
  Backend& backend() { return *backend_; }

  Tensor input(const Matrix& x, DType dtype) {
    const int64_t ld = x.cols + padding_;
    std::vector<double> padded(x.rows * ld, std::nan(""));
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) padded[i * ld + j] = x.real(i, j);
    }
    return {upload(dtype, padded), dtype, x.rows, x.cols, ld};
  }
  Tensor input(const Matrix& x) { return input(x, backend_->dtype()); }

  Tensor output(int64_t rows, int64_t cols, DType dtype) {
    return input(Matrix(rows, cols, std::nan("")), dtype);
  }
  Tensor output(int64_t rows, int64_t cols) { return output(rows, cols, backend_->dtype()); }
  Tensor trainable(int64_t rows, int64_t cols) {
    return output(rows, cols, backend_->trainable_dtype());
  }

  // Also checks that nothing was written between the rows.
  Matrix read(const Tensor& x) {
    const std::vector<double> padded = download(x);
    Matrix y(x.rows, x.cols);
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.ld; ++j) {
        if (j < x.cols) {
          y.at(i, j) = padded[i * x.ld + j];
        } else {
          EXPECT_TRUE(std::isnan(padded[i * x.ld + j]))
              << "row " << i << " was written past its end";
        }
      }
    }
    return y;
  }

  TokenBatch batch(const Documents& documents) { return batch_on(*backend_, documents); }

 private:
  void* upload(DType dtype, const std::vector<double>& values) {
    const int64_t n_bytes = static_cast<int64_t>(values.size()) * size_of(dtype);
    void* data = backend_->allocate(n_bytes);
    if (dtype == DType::f64) {
      backend_->upload(data, values.data(), n_bytes);
      return data;
    }
    const std::vector<float> floats(values.begin(), values.end());
    std::vector<char> host(n_bytes);
    from_float(dtype, floats.data(), static_cast<int64_t>(floats.size()), host.data());
    backend_->upload(data, host.data(), n_bytes);
    return data;
  }
  std::vector<double> download(const Tensor& x) {
    const int64_t n_elem = x.rows * x.ld;
    std::vector<double> values(n_elem);
    if (x.dtype == DType::f64) {
      backend_->download(values.data(), x.data, n_elem * 8);
      return values;
    }
    std::vector<char> host(n_elem * size_of(x.dtype));
    backend_->download(host.data(), x.data, static_cast<int64_t>(host.size()));
    std::vector<float> floats(n_elem);
    to_float(x.dtype, host.data(), n_elem, floats.data());
    values.assign(floats.begin(), floats.end());
    return values;
  }

  std::unique_ptr<Backend> backend_;
  int64_t padding_;
};

}  // namespace utrain
