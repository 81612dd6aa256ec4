// (x_i, x_{i+D/2}) turned by the angle position * frequency_i     Su et al. 2021, arXiv:2104.09864
//   x, dx [N, H*D] T, in place, H = any number of heads
//   cos_sin [positions, D] float32: D/2 cosines, then D/2 sines
//   forward turns by +angle, backward by -angle (a rotation's transpose is its inverse where
//   cos^2 + sin^2 = 1). Requires D even, positions below the table's rows. The table is in float32
//   for every T: llama3 and yarn scaling are in its values.
#pragma once

#include "backend.h"
#include "cpu/view.h"

namespace utrain::cpu {

template <class T>
void rope(View<T> x, View<float> cos_sin, int64_t D, const TokenBatch& batch, Real<T> sign) {
  ASSERT(D > 0 && D % 2 == 0 && x.cols % D == 0 && cos_sin.cols == D && x.rows == batch.n_rows);
  ASSERT(all_below(batch.positions, batch.n_rows, cos_sin.rows));
  const int64_t half = D / 2;
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < x.rows; ++n) {
    const float *cosine = cos_sin.row(batch.positions[n]), *sine = cosine + half;
    for (T* head = x.row(n); head < x.row(n) + x.cols; head += D) {
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const Real<T> c = cosine[i], s = sign * sine[i];
        const T a = head[i], b = head[i + half];
        head[i] = a * c - b * s;
        head[i + half] = b * c + a * s;
      }
    }
  }
}

template <class T>
void rope_forward(View<T> x, View<float> cos_sin, int64_t D, const TokenBatch& batch) {
  rope(x, cos_sin, D, batch, Real<T>(1));
}

template <class T>
void rope_backward(View<T> dx, View<float> cos_sin, int64_t D, const TokenBatch& batch) {
  rope(dx, cos_sin, D, batch, Real<T>(-1));
}

}  // namespace utrain::cpu
