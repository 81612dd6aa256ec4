// What checksum() must give on any backend.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "backend.h"

namespace utrain {

using Words = std::vector<uint32_t>;

inline constexpr uint64_t kChecksumMask = (uint64_t{1} << 48) - 1;

// By its definition.
inline double checksum_of(const Words& words, uint64_t start = 0) {
  for (size_t i = 0; i < words.size(); ++i) start += (2 * i + 1) * words[i];
  return static_cast<double>(start & kChecksumMask);
}

inline Words some_words(size_t n) {
  Words words(n);
  uint64_t x = n + 1;
  for (uint32_t& word : words) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    word = static_cast<uint32_t>(x >> 32);
  }
  return words;
}

// Words on a device, behind `skipped` of others, and the sum that they are added to.
class ChecksumOperands {
 public:
  ChecksumOperands(Backend& backend, const Words& words, int64_t skipped = 0)
      : backend_(backend), n_(std::ssize(words)) {
    // What lies before and behind must not count.
    Words all(static_cast<size_t>(skipped), 0xdeadbeef);
    all.insert(all.end(), words.begin(), words.end());
    all.insert(all.end(), 5, 0xdeadbeef);
    auto* memory = static_cast<char*>(backend.allocate(4 * std::ssize(all)));
    backend.upload(memory, all.data(), 4 * std::ssize(all));
    words_ = memory + 4 * skipped;
    sum_ = make_tensor(backend.allocate(8), DType::f64, 1, 1);
  }
  void flip(int64_t bit) {
    uint32_t word = 0;
    backend_.download(&word, words_ + bit / 32 * 4, 4);
    word ^= uint32_t{1} << bit % 32;
    backend_.upload(words_ + bit / 32 * 4, &word, 4);
  }
  double sum(double before = 0.0, DType dtype = DType::f32) {
    backend_.upload(sum_.data, &before, 8);
    backend_.checksum(sum_, make_tensor(words_, dtype, 1, n_ * 4 / size_of(dtype)));
    double found = -1.0;
    backend_.download(&found, sum_.data, 8);
    return found;
  }

 private:
  Backend& backend_;
  int64_t n_;
  char* words_;
  Tensor sum_;
};

inline void expect_definition(Backend& backend) {
  for (const size_t n : {0, 1, 2, 3, 4, 5, 7, 1024, 4099, 1000003})
    for (const int64_t skipped : {0, 1, 2, 4})
      EXPECT_EQ(ChecksumOperands(backend, some_words(n), skipped).sum(), checksum_of(some_words(n)))
          << n << " words behind " << skipped;
  // The largest words: sums wrap many times.
  const Words ones(300001, 0xffffffff);
  EXPECT_EQ(ChecksumOperands(backend, ones).sum(), checksum_of(ones));
}

inline void expect_added(Backend& backend) {
  ChecksumOperands operands(backend, some_words(1021));
  for (const uint64_t before : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 47, kChecksumMask})
    EXPECT_EQ(operands.sum(static_cast<double>(before)), checksum_of(some_words(1021), before));
}

inline void expect_every_bit_counts(Backend& backend) {
  constexpr int64_t kWords = 37;
  for (const Words& words : {some_words(kWords), Words(kWords, 0), Words(kWords, 0xffffffff)}) {
    ChecksumOperands operands(backend, words);
    const double whole = operands.sum();
    for (int64_t bit = 0; bit < 32 * kWords; ++bit) {
      operands.flip(bit);
      EXPECT_NE(operands.sum(), whole) << "bit " << bit;
      operands.flip(bit);
    }
    EXPECT_EQ(operands.sum(), whole);
  }
}

inline void expect_dtype_does_not_matter(Backend& backend) {
  ChecksumOperands operands(backend, some_words(1024));
  for (const DType dtype : {DType::bf16, DType::f16, DType::f64, DType::c128})
    EXPECT_EQ(operands.sum(0.0, dtype), operands.sum());
}

}  // namespace utrain
