// Collectives over MPI of a group of ranks, for tensors in host memory.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/collectives.h"
#include "comm/world.h"

namespace utrain {

class MpiCollectives : public Collectives {
 public:
  static constexpr int64_t kWindowElems = int64_t{16} << 20;
  // What is under way at a time, and the scratch memory, are at most window_elems elements (at
  // least one for each rank).
  explicit MpiCollectives(const RankGroup& group, int64_t window_elems = kWindowElems);
  explicit MpiCollectives(const World& world, int64_t window_elems = kWindowElems)
      : MpiCollectives(world.all_ranks(), window_elems) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce_sum(const Tensor& x) override;
  void reduce_scatter_sum(const Tensor& shard, const Tensor& x) override;
  void all_gather(const Tensor& whole, const Tensor& shard) override;
  void broadcast(const Tensor& x, int root) override;
  double all_reduce_sum(double x) override;
  int64_t all_reduce_max(int64_t x) override;
  void barrier() override;
  double exposed_seconds() override { return seconds_; }

 private:
  void sum_slice(const Tensor& shard, const Tensor& x);
  template <class T>
  void sum_slice(T* shard, const T* x, int64_t n);
  void gather_slices(const Tensor& whole, const Tensor& shard);
  int64_t n_windows(int64_t n) const;
  int64_t window_size(int64_t n, int rank, int64_t window) const;

  RankGroup group_;
  int rank_, size_;
  int64_t window_elems_;  // of one rank
  std::vector<std::byte> scratch_;
  double seconds_ = 0.0;  // in calls on tensors
};

}  // namespace utrain
