// Collectives: numbered, bounded calls over contiguous tensors [1, n] that all ranks make in the
// same order. Each call has the next number on every rank, so a hang can be told by the rank with
// the lowest number.
//
// The order promise: a sum over ranks is ((x_0 + x_1) + x_2) + ... in rank order for each element,
// in the tensor's dtype. It has the same bits on all ranks and does not depend on how the work was
// sliced. Sums take float32, float64 and complex128; the other calls take any dtype. n is the same
// on all ranks; 0 is allowed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/flat_block.h"
#include "core/tensor.h"

namespace utrain {

class Collectives {
 public:
  // A slice begins at a whole block.
  static constexpr int64_t kBlock = kFlatBlock;

  virtual ~Collectives() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual void all_reduce_sum(const Tensor& x) = 0;  // x = sum over ranks, in place
  // The same as two calls, so that the backend may compute in between. What the backend was told
  // before begin is done to x first; nobody touches x until finish(), and what the backend is told
  // after that sees the sums of all that was begun. Calls begun are numbered and done in the order
  // of their beginning; other collectives may stand between begin and finish and keep their place.
  virtual void begin_all_reduce_sum(const Tensor& x) { all_reduce_sum(x); }
  virtual void begin_reduce_scatter_sum(const Tensor& shard, const Tensor& x) {
    reduce_scatter_sum(shard, x);
  }
  virtual void begin_all_gather(const Tensor& whole, const Tensor& shard) {
    all_gather(whole, shard);
  }
  virtual void finish() {}
  // As finish(), for the call of this number and those before it; they may be long done.
  virtual void wait(int64_t /*number*/) { finish(); }
  // shard [1, own slice] = that slice of the sum over ranks of x [1, n]. x is kept; shard may be
  // that slice of x.
  virtual void reduce_scatter_sum(const Tensor& shard, const Tensor& x) = 0;
  // whole [1, n] = the slices of all ranks; shard [1, own slice] may be that slice of whole.
  virtual void all_gather(const Tensor& whole, const Tensor& shard) = 0;
  virtual void broadcast(const Tensor& x, int root) = 0;  // x = x of root
  virtual double all_reduce_sum(double x) = 0;
  virtual int64_t all_reduce_max(int64_t x) = 0;
  virtual void barrier() = 0;

  // From now on all_gather of one of these tensors, a shard of this rank, may read the shards of
  // the others where they lie. So whoever writes to one does it after a call that sums what all
  // ranks gathered for, and says shared_changed() when it is written. As many on all ranks, each in
  // its place; they outlive the last gather of any rank. Collective, as shared_changed.
  virtual void share(std::span<const Tensor> /*shards*/) {}
  virtual void shared_changed() {}

  // Seconds so far that the computation stood still for these calls, the scalar ones left out: what
  // it did not hide, and waiting for slower ranks. Waits for what was begun.
  virtual double exposed_seconds() { return 0.0; }

  int64_t number() const { return number_; }           // calls begun so far
  virtual int64_t reserve_bytes() const { return 0; }  // device memory it holds from its start

  // First element of a rank's slice of n elements; the slice ends where that of rank + 1 begins.
  // Slices are whole blocks, but for the last block of n, and differ by at most one block.
  static int64_t slice_begin(int64_t n, int rank, int ranks) {
    ASSERT(n >= 0 && ranks > 0 && rank >= 0 && rank <= ranks);
    const int64_t n_blocks = (n + kBlock - 1) / kBlock;
    return std::min(n, n_blocks * rank / ranks * kBlock);
  }
  static int64_t slice_size(int64_t n, int rank, int ranks) {
    return slice_begin(n, rank + 1, ranks) - slice_begin(n, rank, ranks);
  }

 protected:
  // x as a flat view of its n elements.
  static Tensor flat(const Tensor& x, int64_t n) {
    ASSERT(x.n_elem() == n && x.contiguous() && (n == 0 || x.data != nullptr));
    return make_tensor(x.data, x.dtype, 1, n);
  }

  int64_t number_ = 0;
};

}  // namespace utrain
