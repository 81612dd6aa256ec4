// The oracles of operations, on backend.h alone: an operation in any dtype and on any backend is
// held against itself.
//   complex step   gradient of <dy, f(x)> = Im <dy, f(x + i h e_k)> / h, exact to rounding
//                  Squire & Trapp 1998
//   adjoint        <dy, J v> = <J' dy, v>
// Every matrix gets a stride larger than its width; strides and outputs are filled with NaN before
// a call, so that a read or a write in the wrong place, or an element left out, shows.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <complex>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "data/pass.h"
#include "tolerance.h"

namespace utrain {

using Complex = std::complex<double>;

struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<Complex> values;

  Matrix() = default;
  Matrix(int64_t rows, int64_t cols, Complex value = 0.0)
      : rows(rows), cols(cols), values(rows * cols, value) {}
  Complex& at(int64_t i, int64_t j) { return values[i * cols + j]; }
  double real(int64_t i, int64_t j) const { return values[i * cols + j].real(); }
  bool operator==(const Matrix&) const = default;
};

// Uniform in (-scale, scale) and a function of the seed alone.
inline Matrix random_matrix(int64_t rows, int64_t cols, uint64_t seed, double scale = 1.0) {
  Matrix x(rows, cols);
  std::mt19937_64 engine(seed);
  for (Complex& value : x.values) {
    value = scale * (2.0 * (static_cast<double>(engine() >> 11) * 0x1p-53) - 1.0);
  }
  return x;
}

inline Matrix columns(const Matrix& x, int64_t begin, int64_t n) {
  Matrix y(x.rows, n);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < n; ++j) y.at(i, j) = x.real(i, begin + j);
  }
  return y;
}

inline void round_to_float(Matrix& x) {
  for (Complex& value : x.values) value = static_cast<double>(static_cast<float>(value.real()));
}

// sum |found - wanted|^2 / sum |wanted|^2
inline double nmse(const Matrix& found, const Matrix& wanted) {
  if (found.rows != wanted.rows || found.cols != wanted.cols) return std::nan("");
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < wanted.values.size(); ++i) {
    error += std::norm(found.values[i] - wanted.values[i]);
    size += std::norm(wanted.values[i]);
  }
  return error == 0.0 ? 0.0 : error / size;
}

// max |found - wanted| / max |wanted|
inline double largest_error(const Matrix& found, const Matrix& wanted) {
  if (found.rows != wanted.rows || found.cols != wanted.cols) return std::nan("");
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < wanted.values.size(); ++i) {
    const double difference = std::abs(found.values[i] - wanted.values[i]);
    if (std::isnan(difference)) return difference;
    error = std::max(error, difference);
    size = std::max(size, std::abs(wanted.values[i]));
  }
  return error == 0.0 ? 0.0 : error / size;
}

// Documents of these lengths one after the other, then rows of padding. Some rows have no target.
struct Documents {
  std::vector<int32_t> tokens, positions, begin, end, documents, target_rows, targets;

  Documents(const std::vector<int64_t>& lengths, int64_t padding, int64_t vocabulary,
            int32_t first_document = 0) {
    std::mt19937_64 engine(lengths.size() + padding);
    const auto token = [&] { return static_cast<int32_t>(engine() % vocabulary); };
    const auto add_row = [&](int64_t position, int64_t length, int32_t document) {
      const int32_t row = static_cast<int32_t>(tokens.size());
      const int32_t first = row - static_cast<int32_t>(position);
      tokens.push_back(token());
      positions.push_back(static_cast<int32_t>(position));
      begin.push_back(first);
      end.push_back(first + static_cast<int32_t>(length));
      documents.push_back(document);
    };
    int32_t document = first_document;
    for (const int64_t length : lengths) {
      for (int64_t position = 0; position < length; ++position) {
        if (position + 1 < length && engine() % 4 != 0) {
          target_rows.push_back(static_cast<int32_t>(tokens.size()));
          targets.push_back(token());
        }
        add_row(position, length, document);
      }
      ++document;
    }
    for (int64_t i = 0; i < padding; ++i) add_row(0, 1, 0);
  }
  int64_t n_rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t n_targets() const { return static_cast<int64_t>(targets.size()); }
};

// A pass of these documents in a backend's memory.
inline TokenBatch batch_on(Backend& backend, const Documents& documents) {
  const auto integers = [&](const std::vector<int32_t>& values) {
    const int64_t n_bytes = static_cast<int64_t>(values.size()) * 4;
    void* data = backend.allocate(n_bytes);
    backend.upload(data, values.data(), n_bytes);
    return static_cast<const int32_t*>(data);
  };
  return {documents.n_rows(),
          integers(documents.tokens),
          integers(documents.positions),
          integers(documents.begin),
          integers(documents.end),
          integers(documents.documents),
          documents.n_targets(),
          integers(documents.target_rows),
          integers(documents.targets),
          integers(rows_by_token(documents.tokens))};
}

// A backend and the operands of one call.
class Operands {
 public:
  explicit Operands(DType dtype) : backend_(make_cpu_backend(dtype)) {}
  Backend& backend() { return *backend_; }

  Tensor input(const Matrix& x, DType dtype) {
    const Tensor tensor = output(x.rows, x.cols, dtype);
    std::vector<char> host = download(tensor);
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) {
        store(dtype, host.data(), i * tensor.ld + j, x.values[i * x.cols + j]);
      }
    }
    backend_->upload(tensor.data, host.data(), static_cast<int64_t>(host.size()));
    return tensor;
  }
  Tensor input(const Matrix& x) { return input(x, backend_->dtype()); }

  Tensor output(int64_t rows, int64_t cols, DType dtype) {
    const int64_t n_elem = rows * (cols + kPadding);
    std::vector<char> host(n_elem * size_of(dtype));
    for (int64_t i = 0; i < n_elem; ++i) store(dtype, host.data(), i, std::nan(""));
    const int64_t n_bytes = static_cast<int64_t>(host.size());
    void* data = backend_->allocate(n_bytes);
    backend_->upload(data, host.data(), n_bytes);
    return {data, dtype, rows, cols, cols + kPadding};
  }
  Tensor output(int64_t rows, int64_t cols) { return output(rows, cols, backend_->dtype()); }
  Tensor trainable(int64_t rows, int64_t cols) {
    return output(rows, cols, backend_->trainable_dtype());
  }

  // Also checks that nothing was written between the rows.
  Matrix read(const Tensor& x) {
    const std::vector<char> host = download(x);
    Matrix y(x.rows, x.cols);
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.ld; ++j) {
        const Complex value = load(x.dtype, host.data(), i * x.ld + j);
        if (j < x.cols) {
          y.at(i, j) = value;
        } else {
          EXPECT_TRUE(std::isnan(value.real())) << "row " << i << " was written past its end";
        }
      }
    }
    return y;
  }

  TokenBatch batch(const Documents& documents) { return batch_on(*backend_, documents); }

 private:
  static constexpr int64_t kPadding = 3;

  static void store(DType dtype, char* data, int64_t i, Complex value) {
    const float narrow = static_cast<float>(value.real());
    const double wide = value.real();
    const int64_t size = size_of(dtype);
    ASSERT(dtype == DType::f32 || dtype == DType::f64 || dtype == DType::c128);
    const void* source = dtype == DType::f32   ? static_cast<const void*>(&narrow)
                         : dtype == DType::f64 ? static_cast<const void*>(&wide)
                                               : static_cast<const void*>(&value);
    std::memcpy(data + i * size, source, size);
  }
  static Complex load(DType dtype, const char* data, int64_t i) {
    float narrow = 0.0f;
    double wide = 0.0;
    Complex value;
    switch (dtype) {
      case DType::f32: std::memcpy(&narrow, data + i * 4, 4); return narrow;
      case DType::f64: std::memcpy(&wide, data + i * 8, 8); return wide;
      case DType::c128: std::memcpy(&value, data + i * 16, 16); return value;
      default: ASSERT(!"a dtype of the oracles"); return value;
    }
  }
  std::vector<char> download(const Tensor& x) {
    std::vector<char> host(x.rows * x.ld * size_of(x.dtype));
    backend_->download(host.data(), x.data, static_cast<int64_t>(host.size()));
    return host;
  }

  std::unique_ptr<Backend> backend_;
};

// A differentiable operation. forward and backward read the inputs as they are when called, in the
// dtype named.
struct Operation {
  std::vector<Matrix*> inputs;
  std::function<Matrix(DType)> forward;
  // The gradients of <dy, forward> in the order of the inputs.
  std::function<std::vector<Matrix>(DType, const Matrix& dy)> backward;
};

inline Matrix random_like(const Matrix& x, uint64_t seed) {
  return random_matrix(x.rows, x.cols, seed);
}

inline double inner_product(const Matrix& a, const Matrix& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.values.size(); ++i) sum += a.values[i].real() * b.values[i].real();
  return sum;
}

inline Matrix imaginary_part(const Matrix& x, double step) {
  Matrix y(x.rows, x.cols);
  for (size_t i = 0; i < x.values.size(); ++i) y.values[i] = x.values[i].imag() / step;
  return y;
}

inline constexpr double kComplexStepSize = 1e-30;

// The gradient of <dy, forward> with respect to x, one element at a time.
inline Matrix complex_step(Matrix& x, const Matrix& dy, const std::function<Matrix()>& forward) {
  Matrix dx(x.rows, x.cols);
  for (size_t i = 0; i < x.values.size(); ++i) {
    const Complex value = x.values[i];
    x.values[i] = Complex(value.real(), kComplexStepSize);
    dx.values[i] = inner_product(dy, imaginary_part(forward(), kComplexStepSize));
    x.values[i] = value;
  }
  return dx;
}

// Oracle 1: the gradient of every input against the complex step.
inline void expect_complex_step(const Operation& operation) {
  const Matrix dy = random_like(operation.forward(DType::f64), 91);
  const std::vector<Matrix> gradients = operation.backward(DType::f64, dy);
  ASSERT_EQ(gradients.size(), operation.inputs.size());
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Matrix wanted =
        complex_step(*operation.inputs[i], dy, [&] { return operation.forward(DType::c128); });
    EXPECT_LE(largest_error(gradients[i], wanted), tolerance::kComplexStep) << "input " << i;
  }
}

// Oracle 2: <dy, J v> = <J' dy, v>, v over all inputs at once, in units of the larger of |dy| |J v|
// and |J' dy| |v|.
inline void expect_adjoint(const Operation& operation) {
  const Matrix dy = random_like(operation.forward(DType::f64), 92);
  const std::vector<Matrix> gradients = operation.backward(DType::f64, dy);
  double right = 0.0, gradient_size = 0.0, v_size = 0.0;
  std::vector<Matrix> saved;
  for (size_t k = 0; k < gradients.size(); ++k) {
    Matrix& x = *operation.inputs[k];
    const Matrix v = random_like(x, 93 + k);
    saved.push_back(x);
    right += inner_product(gradients[k], v);
    gradient_size += inner_product(gradients[k], gradients[k]);
    v_size += inner_product(v, v);
    for (size_t i = 0; i < x.values.size(); ++i) {
      x.values[i] = Complex(x.values[i].real(), kComplexStepSize * v.values[i].real());
    }
  }
  const Matrix Jv = imaginary_part(operation.forward(DType::c128), kComplexStepSize);
  for (size_t k = 0; k < saved.size(); ++k) *operation.inputs[k] = saved[k];
  const double unit =
      std::sqrt(std::max(inner_product(dy, dy) * inner_product(Jv, Jv), gradient_size * v_size));
  EXPECT_LE(std::abs(inner_product(dy, Jv) - right) / unit, tolerance::kAdjoint);
}

// NMSE within the bound, and no element far outside of what that is for each of them.
inline void expect_close(const Matrix& found, const Matrix& wanted, double bound) {
  EXPECT_LE(nmse(found, wanted), bound);
  EXPECT_LE(largest_error(found, wanted), 10.0 * std::sqrt(bound));
}

// Oracle 4: float32 against double on inputs that float32 holds exactly.
inline void expect_float(const Operation& operation, double bound) {
  for (Matrix* x : operation.inputs) round_to_float(*x);
  const Matrix wanted = operation.forward(DType::f64);
  expect_close(operation.forward(DType::f32), wanted, bound);
  Matrix dy = random_like(wanted, 94);
  round_to_float(dy);
  const std::vector<Matrix> found = operation.backward(DType::f32, dy);
  const std::vector<Matrix> gradients = operation.backward(DType::f64, dy);
  for (size_t i = 0; i < found.size(); ++i) {
    SCOPED_TRACE("gradient of input " + std::to_string(i));
    expect_close(found[i], gradients[i], bound);
  }
}

// Equal calls give equal bits, and so do different numbers of threads where BLAS does not share out
// a product.
inline void expect_same_bits(const Operation& operation, const std::vector<int>& thread_counts) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(thread_counts.front());
  const Matrix y = operation.forward(DType::f32), dy = random_like(y, 95);
  const std::vector<Matrix> gradients = operation.backward(DType::f32, dy);
  for (const int n_threads : thread_counts) {
    omp_set_num_threads(n_threads);
    EXPECT_TRUE(operation.forward(DType::f32) == y) << n_threads << " threads";
    EXPECT_TRUE(operation.backward(DType::f32, dy) == gradients) << n_threads << " threads";
  }
  omp_set_num_threads(before);
}

}  // namespace utrain
