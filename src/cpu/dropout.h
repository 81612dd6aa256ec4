// Inverted dropout: factor 1 / (1 - p) where the element's word of Philox is at least p * 2^32,
// else 0.
//   core/random.h says which word an element reads: a function of (seed, epoch, document, position,
//   site, column), so that the mask does not depend on where a document lies in a pass. It is made
//   again wherever it is needed. Requires 0 <= p < 1. Integers alone decide: the same mask on every
//   backend.
#pragma once

#include <vector>

#include "backend.h"
#include "core/random.h"
#include "cpu/view.h"

namespace utrain::cpu {

inline constexpr int64_t kPhiloxLanes = 16;

// Words of philox(key, c0 + lane, c1, c2, c3), words[i][lane]; philox of core/random.h, turned so
// that lanes vectorise.
struct PhiloxLanes {
  uint32_t words[4][kPhiloxLanes];

  PhiloxLanes(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    for (int64_t lane = 0; lane < kPhiloxLanes; ++lane) {
      words[0][lane] = c0 + static_cast<uint32_t>(lane);
      words[1][lane] = c1;
      words[2][lane] = c2;
      words[3][lane] = c3;
    }
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
#pragma omp simd
      for (int64_t lane = 0; lane < kPhiloxLanes; ++lane) {
        const uint64_t p0 = 0xD2511F53ull * words[0][lane], p1 = 0xCD9E8D57ull * words[2][lane];
        words[0][lane] = static_cast<uint32_t>(p1 >> 32) ^ words[1][lane] ^ k0;
        words[2][lane] = static_cast<uint32_t>(p0 >> 32) ^ words[3][lane] ^ k1;
        words[1][lane] = static_cast<uint32_t>(p1);
        words[3][lane] = static_cast<uint32_t>(p0);
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }
};

// The mask of one dropout site. R is the real type of the activations.
template <class R>
class DropoutMask {
 public:
  DropoutMask(const Dropout& dropout, uint32_t site, int64_t n_columns)
      : key_(dropout_key(dropout.seed, dropout.epoch)),
        threshold_(dropout_threshold(dropout.p)),
        site_(site),
        scale_(static_cast<R>(1.0f / (1.0f - dropout.p))),
        factors_((n_columns + kStep - 1) / kStep * kStep) {}

  // The factors of one token's columns, valid until the next call.
  const R* row(int32_t position, int32_t document) {
    for (size_t column = 0; column < factors_.size(); column += kStep) {
      const PhiloxLanes lanes(key_, static_cast<uint32_t>(column / 4),
                              static_cast<uint32_t>(position), static_cast<uint32_t>(document),
                              site_);
      R* factors = factors_.data() + column;
      for (int64_t lane = 0; lane < kPhiloxLanes; ++lane) {
        for (int64_t i = 0; i < 4; ++i) {
          factors[4 * lane + i] = lanes.words[i][lane] >= threshold_ ? scale_ : R(0);
        }
      }
    }
    return factors_.data();
  }

 private:
  static constexpr size_t kStep = 4 * kPhiloxLanes;
  uint64_t key_;
  uint32_t threshold_, site_;
  R scale_;
  std::vector<R> factors_;
};

// y = x * mask, or y += x * mask
template <class T>
void apply_dropout(View<T> y, View<T> x, const LinearContext& context, uint32_t site, bool add) {
  const TokenBatch& batch = context.batch;
  ASSERT(context.dropout.p >= 0.0f && context.dropout.p < 1.0f);
  ASSERT(batch.n_rows == x.rows && y.is(x.rows, x.cols));
#pragma omp parallel
  {
    DropoutMask<Real<T>> mask(context.dropout, site, x.cols);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < x.rows; ++n) {
      const Real<T>* factors = mask.row(batch.positions[n], batch.documents[n]);
      const T* x_n = x.row(n);
      T* y_n = y.row(n);
      if (add) {
#pragma omp simd
        for (int64_t c = 0; c < x.cols; ++c) y_n[c] += x_n[c] * factors[c];
      } else {
#pragma omp simd
        for (int64_t c = 0; c < x.cols; ++c) y_n[c] = x_n[c] * factors[c];
      }
    }
  }
}

}  // namespace utrain::cpu
