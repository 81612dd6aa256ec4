#include "parallel/unit_store.h"

#include <algorithm>

namespace utrain {

UnitStore::UnitStore(const Options& options, const Shards& shards, Collectives& collectives,
                     Arena& arena)
    : options_(options), shards_(shards), places_(shards), collectives_(collectives) {
  const auto declare = [&](const std::string& name, int64_t n_elem) {
    ids_.push_back(arena.declare(name, options.dtype, 1, n_elem, options.memory_class));
  };
  if (options.holding == Holding::whole) {
    for (int64_t u = 0; u < shards_.n_units(); ++u)
      declare(fmt::format("{} of unit {}", options.name, u), shards_.n_elem(u));
    gathered_.assign(ids_.size(), 0);
    return;
  }
  for (size_t place = 0; place < places_.size(); ++place)
    declare(fmt::format("{}, gathered, place {}", options.name, place), places_.n_elem(place));
  declare(options.name + ", own slices", shards_.shard_elems());
  holds_.assign(places_.size(), -1);
  gathered_.assign(places_.size(), 0);
}

void UnitStore::bind(const Arena& arena) {
  const auto buffer = [&](size_t i) { return arena[ids_[i]]; };
  for (int64_t u = 0; u < shards_.n_units(); ++u) {
    if (options_.holding == Holding::whole) {
      units_.push_back(buffer(static_cast<size_t>(u)));
      own_.push_back(shards_.own_of_unit(units_.back(), u));
    } else {
      units_.push_back(buffer(places_.of(u)).columns(0, shards_.n_elem(u)));
      own_.push_back(shards_.own_of_shard(buffer(places_.size()), u));
    }
  }
}

void UnitStore::get(int64_t u) {
  if (options_.holding == Holding::whole) {
    int64_t& number = gathered_[static_cast<size_t>(u)];
    if (number > 0) collectives_.wait(number);
    number = 0;
    return;
  }
  begin_gather(u);
  collectives_.wait(gathered_[places_.of(u)]);
  in_use_ = u;
  // The layer before u in the order of the calls is done with: its place takes the one after u.
  // Passes turn round at the ends; the first layer is followed by the second, of the next pass.
  const int64_t next = u > 0 && u < last_got_ ? u - 1 : u + 1;
  last_got_ = u;
  if (u < last_unit() && next < last_unit()) begin_gather(next);
}

void UnitStore::release(int64_t u) {
  ASSERT(options_.holding == Holding::whole || in_use_ == u);
}

void UnitStore::begin_gather(int64_t u) {
  const size_t place = places_.of(u);
  if (holds_[place] == u) return;
  collectives_.begin_all_gather(unit(u), own(u));
  gathered_[place] = collectives_.number();
  holds_[place] = u;
}

void UnitStore::own_changed() {
  for (int64_t u = 0; u < shards_.n_units(); ++u) own_changed(u);
  if (options_.holding == Holding::whole) collectives_.finish();
}

void UnitStore::own_changed(int64_t u) {
  if (options_.holding == Holding::whole) {
    collectives_.begin_all_gather(unit(u), own(u));
    gathered_[static_cast<size_t>(u)] = collectives_.number();
  } else if (int64_t& held = holds_[places_.of(u)]; held == u) {
    held = -1;
  }
}

}  // namespace utrain
