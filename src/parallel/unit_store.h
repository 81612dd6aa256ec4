// Values of units (images of layers, their adapters), one flat tensor a unit, and who holds them:
//   whole    every rank all of them
//   sharded  every rank its slice of each; get() gathers a unit into one of a few places
// in_host: what a rank holds lies in host memory, and get() copies it to the device first; but for
// the last unit, which is no layer and needed at both ends of a pass: whole, it stays there.
// While one unit is computed with, the next one, in the direction of the last two calls, is already
// on its way. unit() is a fixed address; it holds the unit from get() on until another unit takes
// its place: the last unit has a place of its own.
#pragma once

#include <string>

#include "backend.h"
#include "core/arena.h"
#include "parallel/shards.h"

namespace utrain {

enum class Holding { whole, sharded };

// Of gathered layers: one worked on, one on its way.
inline constexpr int64_t kFewestLayersHeld = 2;

class UnitStore {
 public:
  struct Options {
    std::string name;  // of the buffers
    DType dtype = DType::f32;
    MemoryClass memory_class = MemoryClass::base;
    Holding holding = Holding::whole;
    bool in_host = false;
    int64_t layers_held = kFewestLayersHeld;  // at most; not where in_host
  };
  // shards: over the ranks of `collectives`.
  UnitStore(const Options& options, const Shards& shards, Backend& backend,
            Collectives& collectives, Arena& arena);
  void bind(const Arena& arena);

  Tensor unit(int64_t u) const { return units_.at(static_cast<size_t>(u)); }  // [1, n_elem(u)]
  // What this rank holds of a unit, all of it or its slice; on the host where is_in_host(u).
  Tensor home(int64_t u) const { return home_.at(static_cast<size_t>(u)); }
  bool is_in_host(int64_t u) const {
    return options_.in_host && (is_sharded() || u != last_unit());
  }
  const Shards& shards() const { return shards_; }
  bool is_sharded() const { return options_.holding == Holding::sharded; }
  MemoryClass memory_class() const { return options_.memory_class; }

  Tensor own(int64_t u) const;  // [1, own_elems(u)] its slice

  // Collective where sharded.
  void get(int64_t u);
  void release(int64_t u);
  // After own() was written on every rank: gathers the units where whole, forgets what was
  // gathered where sharded. Of one unit: where whole it is there after get(u). Collective; not
  // where in_host.
  void own_changed();
  void own_changed(int64_t u);
  // Once, when own() is first there: where slices lie on the device, other ranks may copy them from
  // there. own_changed(u) of one unit is not for these. Collective.
  void share();

 private:
  int64_t last_unit() const { return shards_.n_units() - 1; }
  bool has_places() const { return is_sharded() || options_.in_host; }
  struct Place {
    int64_t holds = -1;    // unit, or -1
    int64_t copied = 0;    // ticket of the copy, 0: waited for
    int64_t gathered = 0;  // number of the gather; 0: not begun
  };
  void begin_copy(int64_t u);
  void begin(int64_t u);
  void wait_for_copy(Place& place);

  Options options_;
  Shards shards_;
  Places places_;
  Backend& backend_;
  Collectives& collectives_;
  std::vector<Arena::Id> ids_;  // of each unit, or of each place
  Arena::Id home_id_ = -1;      // of what lies in no place
  std::vector<Tensor> units_, home_;
  std::vector<Place> held_;       // [places]
  std::vector<int64_t> changed_;  // [units] number of the gather after own_changed, 0: waited for
  int64_t last_got_ = -1;
  int64_t in_use_ = -1;
};

}  // namespace utrain
