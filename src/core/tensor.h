// A view of a row-major matrix [rows, cols]; ld elements from one row to the next. It owns nothing.
// The memory may be a GPU's: only a backend reads through data.
#pragma once

#include "core/dtype.h"

namespace utrain {

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0;
  int64_t ld = 0;  // >= cols

  bool empty() const { return data == nullptr; }
  int64_t n_elem() const { return rows * cols; }
  bool contiguous() const { return ld == cols || rows <= 1; }

  // Columns [begin, begin + n) of every row.
  Tensor columns(int64_t begin, int64_t n) const {
    ASSERT(begin >= 0 && n >= 0 && begin + n <= cols);
    return {static_cast<char*>(data) + begin * size_of(dtype), dtype, rows, n, ld};
  }
  // Rows [begin, begin + n).
  Tensor row_range(int64_t begin, int64_t n) const {
    ASSERT(begin >= 0 && n >= 0 && begin + n <= rows);
    return {static_cast<char*>(data) + begin * ld * size_of(dtype), dtype, n, cols, ld};
  }
  // The first n rows.
  Tensor first_rows(int64_t n) const { return row_range(0, n); }

  template <class T>
  T* as() const {
    ASSERT(dtype == dtype_of<T>);
    return static_cast<T*>(data);
  }
};

inline Tensor make_tensor(void* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols};
}

}  // namespace utrain
