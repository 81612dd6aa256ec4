#include "parallel/unit_store.h"

#include <algorithm>

namespace utrain {

namespace {

// From the host two, one worked on and one on its way; where slices are copied, then gathered, one
// for each.
int64_t places_of_layers(const UnitStore::Options& options) {
  if (!options.in_host) return options.layers_held;
  return options.holding == Holding::sharded ? 3 : 2;
}

}  // namespace

UnitStore::UnitStore(const Options& options, const Shards& shards, Backend& backend,
                     Collectives& collectives, Arena& arena)
    : options_(options),
      shards_(shards),
      places_(shards, places_of_layers(options)),
      backend_(backend),
      collectives_(collectives) {
  const auto declare = [&](const std::string& name, int64_t n_elem, MemoryClass memory_class) {
    return arena.declare(name, options.dtype, 1, n_elem, memory_class);
  };
  if (!has_places()) {
    for (int64_t u = 0; u < shards_.n_units(); ++u)
      ids_.push_back(declare(fmt::format("{} of unit {}", options.name, u), shards_.n_elem(u),
                             options.memory_class));
    changed_.assign(ids_.size(), 0);
    return;
  }
  for (size_t place = 0; place < places_.size(); ++place)
    ids_.push_back(declare(fmt::format("{}, place {}", options.name, place), places_.n_elem(place),
                           options.memory_class));
  held_.resize(places_.size());
  home_id_ = declare(options.name + ", own",
                     is_sharded() ? shards_.shard_elems() : shards_.begin(last_unit()),
                     options.in_host ? MemoryClass::host : options.memory_class);
}

void UnitStore::bind(const Arena& arena) {
  for (int64_t u = 0; u < shards_.n_units(); ++u) {
    const size_t buffer = has_places() ? places_.of(u) : static_cast<size_t>(u);
    units_.push_back(arena[ids_[buffer]].columns(0, shards_.n_elem(u)));
    if (is_sharded()) {
      home_.push_back(shards_.own_of_shard(arena[home_id_], u));
    } else {
      home_.push_back(is_in_host(u) ? shards_.unit_of(arena[home_id_], u) : units_.back());
    }
  }
}

Tensor UnitStore::own(int64_t u) const {
  return is_sharded() ? home(u) : shards_.own_of_unit(unit(u), u);
}

void UnitStore::get(int64_t u) {
  if (!has_places()) {
    int64_t& number = changed_[static_cast<size_t>(u)];
    if (number > 0) collectives_.wait(number);
    number = 0;
    return;
  }
  begin(u);
  Place& place = held_[places_.of(u)];
  if (is_sharded()) {
    collectives_.wait(place.gathered);
  } else {
    wait_for_copy(place);
  }
  in_use_ = u;
  // The layer before u in the order of the calls is done with: its place takes the one after u.
  // Passes turn round at the ends; the first layer is followed by the second, of the next pass.
  const int64_t way = u > 0 && u < last_got_ ? -1 : 1;
  last_got_ = u;
  const auto is_layer = [&](int64_t unit) { return unit >= 0 && unit < last_unit(); };
  if (!is_layer(u) || !is_layer(u + way)) return;
  begin(u + way);
  // Its slice is copied while the one before is gathered.
  if (is_sharded() && is_layer(u + 2 * way)) begin_copy(u + 2 * way);
}

void UnitStore::release(int64_t u) {
  ASSERT(!has_places() || in_use_ == u);
}

// Of what this rank holds, to where it is computed with.
void UnitStore::begin_copy(int64_t u) {
  Place& place = held_[places_.of(u)];
  if (!options_.in_host || place.holds == u) return;
  place = {u, 0, 0};
  if (!is_in_host(u)) return;
  const Tensor to = is_sharded() ? shards_.own_of_unit(unit(u), u) : unit(u);
  place.copied =
      backend_.copy_in_begin(to.data, home(u).data, home(u).n_elem() * size_of(to.dtype));
}

void UnitStore::begin(int64_t u) {
  begin_copy(u);
  Place& place = held_[places_.of(u)];
  if (!is_sharded() || (place.holds == u && place.gathered > 0)) return;
  place.holds = u;
  wait_for_copy(place);
  collectives_.begin_all_gather(unit(u), is_in_host(u) ? shards_.own_of_unit(unit(u), u) : home(u));
  place.gathered = collectives_.number();
}

// Once: later the backend may have forgotten its ticket.
void UnitStore::wait_for_copy(Place& place) {
  backend_.copy_wait(place.copied);
  place.copied = 0;
}

void UnitStore::own_changed() {
  for (int64_t u = 0; u < shards_.n_units(); ++u) own_changed(u);
  if (is_sharded())
    collectives_.shared_changed();
  else
    collectives_.finish();
}

void UnitStore::share() {
  if (!is_sharded() || options_.in_host) return;
  std::vector<Tensor> shards;
  for (int64_t u = 0; u < shards_.n_units(); ++u) {
    // Too small to give every rank a slice: gathered.
    if (shards_.n_elem(u) >= collectives_.size() * Collectives::kBlock) shards.push_back(own(u));
  }
  if (!shards.empty()) collectives_.share(shards);
}

void UnitStore::own_changed(int64_t u) {
  ASSERT(!options_.in_host);
  if (is_sharded()) {
    if (Place& place = held_[places_.of(u)]; place.holds == u) place = {};
    return;
  }
  collectives_.begin_all_gather(unit(u), own(u));
  changed_[static_cast<size_t>(u)] = collectives_.number();
}

}  // namespace utrain
