// act = silu(gate) * up, silu(x) = x * sigmoid(x)             Shazeer 2020, arXiv:2002.05202
//   gate_up, dgate_up [N, 2F] T, gate first   act, dact [N, F] T
//   forward: act =. backward: dgate_up =; it may be gate_up (in place).
//   Elementwise, no sums.
#pragma once

#include "cpu/exp.h"
#include "cpu/view.h"

namespace utrain::cpu {

template <class T>
T sigmoid(T x) {
  return static_cast<T>(1) / (static_cast<T>(1) + exp_of(-x));
}

template <class T>
void swiglu_forward(View<T> act, View<T> gate_up) {
  const int64_t F = act.cols;
  ASSERT(gate_up.is(act.rows, 2 * F));
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < act.rows; ++n) {
    const T *gate = gate_up.row(n), *up = gate + F;
    T* act_n = act.row(n);
#pragma omp simd
    for (int64_t f = 0; f < F; ++f) act_n[f] = gate[f] * sigmoid(gate[f]) * up[f];
  }
}

template <class T>
void swiglu_backward(View<T> dgate_up, View<T> dact, View<T> gate_up) {
  const int64_t F = dact.cols;
  ASSERT(gate_up.is(dact.rows, 2 * F) && dgate_up.is(dact.rows, 2 * F));
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < dact.rows; ++n) {
    const T *gate = gate_up.row(n), *up = gate + F, *dact_n = dact.row(n);
    T *dgate = dgate_up.row(n), *dup = dgate + F;
#pragma omp simd
    for (int64_t f = 0; f < F; ++f) {
      const T g = gate[f], u = up[f], d = dact_n[f], s = sigmoid(g);
      dgate[f] = d * u * s * (static_cast<T>(1) + g * (static_cast<T>(1) - s));
      dup[f] = d * g * s;
    }
  }
}

}  // namespace utrain::cpu
