// Collectives of one of `size` ranks that move nothing: for plans, where only the sizes matter, and
// for a rank alone, whose slice is the whole and whose sum is what it has. Counts the bytes that
// this rank would send.
#pragma once

#include <cstring>

#include "comm/collectives.h"

namespace utrain {

class SilentCollectives : public Collectives {
 public:
  explicit SilentCollectives(int rank = 0, int size = 1) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce_sum(const Tensor& x) override { count(2 * bytes_to_others(x)); }
  void reduce_scatter_sum(const Tensor& /*shard*/, const Tensor& x) override {
    count(bytes_to_others(x));
  }
  void all_gather(const Tensor& whole, const Tensor& /*shard*/) override {
    count(bytes_to_others(whole));
  }
  void broadcast(const Tensor& x, int /*root*/) override { count(bytes_to_others(x)); }
  double all_reduce_sum(double x) override { return x; }
  int64_t all_reduce_max(int64_t x) override { return x; }
  void barrier() override {}

  int64_t bytes_sent() const { return bytes_sent_; }

 private:
  int64_t bytes_to_others(const Tensor& x) const {
    return x.n_elem() * size_of(x.dtype) / size_ * (size_ - 1);
  }
  void count(int64_t bytes) {
    ++number_;
    bytes_sent_ += bytes;
  }

  int rank_, size_;
  int64_t bytes_sent_ = 0;
};

}  // namespace utrain
