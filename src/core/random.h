// Counter-based random numbers: a value is a function of its key and counter, so masks and initial
// weights do not depend on order, packing, ranks or device.                 Philox4x32-10: Salmon
// et al. 2011, doi:10.1145/2063384.2063405
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace utrain {

#ifdef __CUDACC__
#define UTRAIN_HOST_DEVICE __host__ __device__
#else
#define UTRAIN_HOST_DEVICE
#endif

struct Philox {
  uint32_t x[4];
};

UTRAIN_HOST_DEVICE inline Philox philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                        uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0,
                   n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// splitmix64's finaliser: turns structured numbers (seed + epoch) into keys without structure.
UTRAIN_HOST_DEVICE inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Dropout masks: key of (seed, epoch); column c of a site reads word c % 4 of philox(key, c / 4,
// position, document, site).
UTRAIN_HOST_DEVICE inline uint64_t dropout_key(uint64_t seed, int64_t epoch) {
  return mix(seed ^ mix(static_cast<uint64_t>(epoch) + 1));
}
// An element is kept where its word is at least this: probability 1 - p.
UTRAIN_HOST_DEVICE inline uint32_t dropout_threshold(float p) {
  return static_cast<uint32_t>(static_cast<double>(p) * 4294967296.0);
}

// Uniform in [0, 1) with 24 bits, exact in float32.
UTRAIN_HOST_DEVICE inline float uniform(uint32_t word) {
  return static_cast<float>(word >> 8) * 0x1p-24f;
}

}  // namespace utrain
