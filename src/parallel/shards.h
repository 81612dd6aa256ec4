// How a flat buffer of units (layers, then the ends of the model) lies on ranks: every unit is cut
// into one slice a rank, as Collectives cuts it, and a rank's slices one after another are its
// shard. Gathering a unit and scattering its sum are one call each.
#pragma once

#include <algorithm>
#include <vector>

#include "comm/collectives.h"

namespace utrain {

class Shards {
 public:
  // unit_begin [units + 1]: first element of each unit in the flat buffer, and its end; units are
  // whole blocks.
  Shards(std::vector<int64_t> unit_begin, int rank, int ranks)
      : unit_begin_(std::move(unit_begin)) {
    ASSERT(!unit_begin_.empty() && unit_begin_.front() == 0);
    for (int64_t u = 0; u < n_units(); ++u) {
      ASSERT(n_elem(u) >= 0 && n_elem(u) % Collectives::kBlock == 0);
      own_.push_back({Collectives::slice_begin(n_elem(u), rank, ranks),
                      Collectives::slice_size(n_elem(u), rank, ranks), shard_elems_});
      shard_elems_ += own_.back().n_elem;
    }
  }

  int64_t n_units() const { return static_cast<int64_t>(unit_begin_.size()) - 1; }
  int64_t n_elem() const { return unit_begin_.back(); }
  const std::vector<int64_t>& unit_begin() const { return unit_begin_; }
  int64_t begin(int64_t u) const { return unit_begin_.at(static_cast<size_t>(u)); }
  int64_t n_elem(int64_t u) const { return begin(u + 1) - begin(u); }

  // This rank's slice of a unit: its first element in the unit and in the shard, its size.
  int64_t own_begin(int64_t u) const { return own(u).in_unit; }
  int64_t own_begin_in_shard(int64_t u) const { return own(u).in_shard; }
  int64_t own_elems(int64_t u) const { return own(u).n_elem; }
  int64_t shard_elems() const { return shard_elems_; }

  // Of a flat buffer [1, n_elem()], a unit [1, n_elem(u)], a shard [1, shard_elems()].
  Tensor unit_of(const Tensor& flat, int64_t u) const { return flat.columns(begin(u), n_elem(u)); }
  Tensor own_of_unit(const Tensor& unit, int64_t u) const {
    return unit.columns(own_begin(u), own_elems(u));
  }
  Tensor own_of_shard(const Tensor& shard, int64_t u) const {
    return shard.columns(own_begin_in_shard(u), own_elems(u));
  }

 private:
  struct Own {
    int64_t in_unit, n_elem, in_shard;
  };
  const Own& own(int64_t u) const { return own_.at(static_cast<size_t>(u)); }

  std::vector<int64_t> unit_begin_;
  std::vector<Own> own_;
  int64_t shard_elems_ = 0;
};

// The few buffers that units take in turn: layers two or more, so that one is worked on while
// the next is on its way; the last unit, which is no layer, one of its own.
class Places {
 public:
  Places() = default;
  // n_elem: what of a unit lies in its place.
  explicit Places(const Shards& shards, int64_t of_layers = 2,
                  int64_t (Shards::*n_elem)(int64_t) const = &Shards::n_elem)
      : last_unit_(shards.n_units() - 1),
        of_layers_(of_layers),
        n_elem_(static_cast<size_t>(of_layers + 1), 0) {
    for (int64_t u = 0; u <= last_unit_; ++u)
      n_elem_[of(u)] = std::max(n_elem_[of(u)], (shards.*n_elem)(u));
  }

  size_t of(int64_t u) const {
    return static_cast<size_t>(u == last_unit_ ? of_layers_ : u % of_layers_);
  }
  size_t size() const { return n_elem_.size(); }
  int64_t n_elem(size_t place) const { return n_elem_.at(place); }  // of the largest there

 private:
  int64_t last_unit_ = -1, of_layers_ = 0;
  std::vector<int64_t> n_elem_;
};

}  // namespace utrain
