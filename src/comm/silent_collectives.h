// Collectives of one of `size` ranks that move nothing: for plans, where only the sizes matter, and
// for a rank alone, whose slice is the whole and whose sum is what it has. Counts the bytes that
// this rank would send: (size - 1) / size of a tensor that is scattered or gathered, twice that of
// one that is all-reduced; a broadcast's as if every rank were its root.
#pragma once

#include <cstring>

#include "comm/collectives.h"

namespace utrain {

struct BytesSent {
  int64_t all_reduce = 0, reduce_scatter = 0, all_gather = 0, broadcast = 0;
  int64_t sum() const { return all_reduce + reduce_scatter + all_gather + broadcast; }
  friend BytesSent operator+(const BytesSent& a, const BytesSent& b) {
    return {a.all_reduce + b.all_reduce, a.reduce_scatter + b.reduce_scatter,
            a.all_gather + b.all_gather, a.broadcast + b.broadcast};
  }
  friend BytesSent operator-(const BytesSent& a, const BytesSent& b) {
    return {a.all_reduce - b.all_reduce, a.reduce_scatter - b.reduce_scatter,
            a.all_gather - b.all_gather, a.broadcast - b.broadcast};
  }
};

class SilentCollectives : public Collectives {
 public:
  explicit SilentCollectives(int rank = 0, int size = 1) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce_sum(const Tensor& x) override { count(sent_.all_reduce, 2 * bytes_to_others(x)); }
  void reduce_scatter_sum(const Tensor& /*shard*/, const Tensor& x) override {
    count(sent_.reduce_scatter, bytes_to_others(x));
  }
  void all_gather(const Tensor& whole, const Tensor& /*shard*/) override {
    count(sent_.all_gather, bytes_to_others(whole));
  }
  void broadcast(const Tensor& x, int /*root*/) override {
    count(sent_.broadcast, bytes_to_others(x));
  }
  double all_reduce_sum(double x) override { return x; }
  int64_t all_reduce_max(int64_t x) override { return x; }
  void barrier() override {}

  const BytesSent& sent() const { return sent_; }

 private:
  int64_t bytes_to_others(const Tensor& x) const {
    return x.n_elem() * size_of(x.dtype) * (size_ - 1) / size_;
  }
  void count(int64_t& kind, int64_t bytes) {
    ++number_;
    kind += bytes;
  }

  int rank_, size_;
  BytesSent sent_;
};

}  // namespace utrain
