// Values of units (images of layers, their adapters), one flat tensor a unit, and who holds them:
//   whole    every rank all of them
//   sharded  every rank its slice of each; get() gathers a unit into one of a few places, while the
//            next one, in the direction of the last two calls, is already on its way
// unit() is a fixed address; it holds the unit from get() on until another unit takes its place:
// units that are no layer (the last one) have a place of their own.
#pragma once

#include <string>

#include "backend.h"
#include "core/arena.h"
#include "parallel/shards.h"

namespace utrain {

enum class Holding { whole, sharded };

class UnitStore {
 public:
  struct Options {
    std::string name;  // of the buffers
    DType dtype = DType::f32;
    MemoryClass memory_class = MemoryClass::base;
    Holding holding = Holding::whole;
  };
  // shards: over the ranks of `collectives`.
  UnitStore(const Options& options, const Shards& shards, Collectives& collectives, Arena& arena);
  void bind(const Arena& arena);

  Tensor unit(int64_t u) const { return units_.at(static_cast<size_t>(u)); }  // [1, n_elem(u)]
  Tensor own(int64_t u) const { return own_.at(static_cast<size_t>(u)); }     // [1, own_elems(u)]
  const Shards& shards() const { return shards_; }
  Holding holding() const { return options_.holding; }
  MemoryClass memory_class() const { return options_.memory_class; }

  // Collective where sharded.
  void get(int64_t u);
  void release(int64_t u);
  // After own() was written on every rank: gathers the units where whole, forgets what was gathered
  // where sharded. Of one unit: where whole it is there after get(u). Collective.
  void own_changed();
  void own_changed(int64_t u);

 private:
  int64_t last_unit() const { return shards_.n_units() - 1; }
  void begin_gather(int64_t u);

  Options options_;
  Shards shards_;
  Places places_;
  Collectives& collectives_;
  std::vector<Arena::Id> ids_;  // whole: [units]; sharded: [places], then the shard
  std::vector<Tensor> units_, own_;
  std::vector<int64_t> holds_;  // [places] unit, or -1
  std::vector<int64_t>
      gathered_;  // [places], [units] where whole: number of the call that fills it
  int64_t last_got_ = -1;
  int64_t in_use_ = -1;
};

}  // namespace utrain
