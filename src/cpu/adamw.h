// AdamW in torch's order of operations           Loshchilov & Hutter 2017, arXiv:1711.05101
//   p, m, v, g [1, n] T   g is multiplied by grad_scale (clipping) first
//   state [1, kStepStates] double, of clip(): grad_scale, t = n_updates >= 1; not finite: nothing
//   is done. p, m, v updated in place:
//     p *= 1 - lr * weight_decay;  m += (1 - beta1) * (g - m);  v = beta2 * v + (1 - beta2) * g^2
//     p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//   Scalars in double, then rounded to T once; elements in T.
#pragma once

#include <cmath>

#include "backend.h"
#include "cpu/view.h"

namespace utrain::cpu {

template <class T>
void adamw_update(View<T> p, View<T> m, View<T> v, View<T> g, View<double> state,
                  const AdamW& options) {
  const int64_t n = p.cols;
  ASSERT(p.rows == 1 && m.is(1, n) && v.is(1, n) && g.is(1, n) && state.is(1, kStepStates));
  if (state.data[static_cast<int>(StepState::is_finite)] == 0.0) return;
  using R = Real<T>;
  const double t = state.data[static_cast<int>(StepState::n_updates)];
  const double correction1 = 1.0 - std::pow(options.beta1, t);
  const double correction2 = 1.0 - std::pow(options.beta2, t);
  const R decay = static_cast<R>(1.0 - options.lr * options.weight_decay);
  const R step_size = static_cast<R>(options.lr / correction1);
  const R root2 = static_cast<R>(std::sqrt(correction2));
  const R weight1 = static_cast<R>(1.0 - options.beta1);
  const R beta2 = static_cast<R>(options.beta2), weight2 = static_cast<R>(1.0 - options.beta2);
  const R eps = static_cast<R>(options.eps);
  const R grad_scale = static_cast<R>(state.data[static_cast<int>(StepState::grad_scale)]);
  T *p_data = p.data, *m_data = m.data, *v_data = v.data;
  const T* g_data = g.data;
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    const T grad = g_data[i] * grad_scale;
    const T first = m_data[i] + weight1 * (grad - m_data[i]);
    const T second = beta2 * v_data[i] + weight2 * grad * grad;
    m_data[i] = first;
    v_data[i] = second;
    p_data[i] = p_data[i] * decay - step_size * first / (std::sqrt(second) / root2 + eps);
  }
}

}  // namespace utrain::cpu
