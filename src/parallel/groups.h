// The groups of ranks that hold a model together. Implicit from one group: it is both.
#pragma once

#include "comm/collectives.h"

namespace utrain {

struct Groups {
  Groups(Collectives& all) : world(all), base(all) {}
  Groups(Collectives& of_world, Collectives& of_base) : world(of_world), base(of_base) {}

  Collectives& world;  // of what is trained, and of sums
  Collectives& base;   // of zero3's frozen base: world, or the ranks of a node

  // See Collectives.
  double exposed_seconds() const {
    return world.exposed_seconds() + (&base == &world ? 0.0 : base.exposed_seconds());
  }
};

}  // namespace utrain
