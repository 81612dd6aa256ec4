// This rank's share of all that is trained, copied into host memory while the device goes on: what
// a checkpoint is written from. Shares are the slices of Shards under every strategy, so each
// element is one rank's, also where all hold it.
//   begin, at the end of a step; keep, before the next update; wait, then state() until the next
//   begin. Where the optimizer is offloaded its update is finished first, and copied by the caller.
#pragma once

#include <functional>
#include <vector>

#include "checkpoint/slice.h"
#include "model/trainable.h"
#include "parallel/trainables.h"

namespace utrain {

// What rank `rank` of `ranks` gives, in one piece where units follow one another.
std::vector<Slice> slices_of_rank(const TrainableLayout& layout, int rank, int ranks);

class StateCopy {
 public:
  // Its memory is planned also where no checkpoint is due: a run that is stopped writes one.
  StateCopy(const TrainableLayout& layout, Trainables& trainables, const Collectives& world,
            Backend& backend, Arena& arena);
  void bind(const Arena& arena);  // after the arena is placed

  void begin();  // collective where the optimizer is offloaded
  // What is called later begins when the copies are done; who waits for any of it waits for them.
  void keep();
  void wait();  // the caller waits, where keep() was not called
  ShardState state() const;

 private:
  enum Array { kParameters, kM, kV, kArrays };
  float* at(Array array) const { return memory_ + array * shards_.shard_elems(); }

  Shards shards_;
  std::vector<Slice> slices_;
  Trainables& trainables_;
  Backend& backend_;
  Arena::Id id_;
  float* memory_ = nullptr;  // [arrays, shard_elems]
  int64_t newest_ = 0;       // ticket of the last copy: they are done in order
};

}  // namespace utrain
