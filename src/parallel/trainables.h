// What is trained, over ranks: parameters, gradients and Adam's moments in the trainable dtype, by
// unit (model/trainable.h), each rank holding what the strategy says. Rajbhandari et al. 2020,
// arXiv:1910.02054
//   ddp    all on every rank; gradients are all-reduced
//   zero1  a rank updates its own slices: parameters and moments of those alone
//   zero2  gradients too: each unit is reduced as soon as a pass has produced it
//   zero3  what is computed with, too: the values are a sharded UnitStore
// `values` is what the model computes with, in its dtype; where that is the trainable dtype, the
// parameters are the values themselves. Sums over ranks are in rank order, so all strategies have
// the same gradients to the bit where the passes of a step go together (Trainer); others round
// differently under zero2 and zero3, which add the sums of passes instead of summing what passes
// added.
//   Where the optimizer is offloaded, parameters, moments and the update are the host's
// (HostState): update() notes what is to be done, and units are updated as get() asks for them, in
// the order of a forward pass, so that the host updates ahead of a device that computes. No thread
// but the caller's takes part.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <span>

#include "parallel/host_state.h"
#include "parallel/unit_store.h"

namespace utrain {

enum class Strategy { ddp, zero1, zero2, zero3 };

// Elements [begin, begin + n) of the flat buffer, all decayed by AdamW or none.
struct DecayRun {
  int64_t begin = 0, n_elem = 0;
  bool decays = true;
};

class Trainables {
 public:
  struct Options {
    Strategy strategy = Strategy::ddp;
    bool offload_optimizer = false;
  };
  // What this rank updates: a part of one unit with one decay. p, m, v, g [1, n] trainable dtype,
  // all in the memory of update_backend().
  struct Part {
    Tensor p, m, v, g;
    bool decays = true;
  };

  // values: as the strategy wants it held; outlives this object. decay: covers the flat buffer.
  Trainables(const Options& options, std::vector<DecayRun> decay, UnitStore& values,
             Backend& backend, Collectives& collectives, Arena& arena);
  void bind(const Arena& arena);  // after values; the moments start at zero

  int64_t n_elem() const { return values_.shards().n_elem(); }
  int64_t n_units() const { return values_.shards().n_units(); }
  // [1, n_elem(u)], to be added to between begin_gradients(u) and end_gradients(u).
  Tensor gradients(int64_t u) const { return gradients_.at(static_cast<size_t>(u)); }

  // The gradients of a step: begin_pass, of one pass or of those that go together; begin_ and
  // end_gradients of each unit, all ranks in the same order; the next pass; finish_gradients. Sums
  // are taken while the pass goes on.
  void begin_pass(bool first, bool last);
  void begin_gradients(int64_t u);
  void end_gradients(int64_t u);
  void finish_gradients();

  // What every rank holds alike, on the device, after an update: the values where they are whole;
  // under ddp the parameters, where they are not the values, and the moments.
  std::vector<Tensor> replicated_values() const;
  std::vector<Tensor> replicated_parameters() const;
  std::vector<Tensor> replicated_moments() const;

  // Whether the parameters are the values, not a copy of them, wider or on the host.
  bool values_are_parameters() const { return values_are_parameters_; }
  // block_sums [1, n_elem() / 1024]: of the squares of all gradients, the same on every rank.
  void sum_of_squares(const Tensor& block_sums);

  // Updates every part with update_part, and brings the values up to date on every rank; where the
  // optimizer is offloaded both happen as get() asks for units, at the latest in finish_update().
  // Collective, as are the two below.
  using UpdatePart = std::function<void(const Part& part)>;
  void update(UpdatePart update_part);
  bool is_offloaded() const { return host_.has_value(); }
  Backend& update_backend() { return host_ ? host_->backend() : backend_; }
  void get(int64_t u);  // before the values' own get; a forward pass asks for the last unit first
  void finish_update();
  void parameters_changed();  // from outside: brings the values up to date

  // Host. What this rank updates of unit u, from its element own_begin(u) on; then, on all ranks,
  // parameters_changed().
  Tensor parameters(int64_t u) const;  // [1, own_elems(u)]
  Tensor m(int64_t u) const { return host_ ? host_->m(u) : update_.own_of_shard(m_, u); }
  Tensor v(int64_t u) const { return host_ ? host_->v(u) : update_.own_of_shard(v_, u); }
  int64_t own_begin(int64_t u) const { return update_.own_begin(u); }
  int64_t own_elems(int64_t u) const { return update_.own_elems(u); }
  // A piece of these, from element `first` of the rank's own on.
  void set_parameters(int64_t u, int64_t first, std::span<const float> values);
  void set_moments(int64_t u, int64_t first, std::span<const float> m, std::span<const float> v);
  // A unit on every rank, for read() until the next call. Collective; not between begin_pass and the
  // update, whose gradients it overwrites where they are shared.
  struct Gathered {
    Tensor values;  // [1, n_elem(u)]
    bool is_in_host = false;
  };
  Gathered gather_parameters(int64_t u);
  Gathered gather_gradients(int64_t u);
  void read(const Gathered& unit, int64_t first, std::span<float> out) const;  // not collective

 private:
  bool updates_slices() const { return strategy_ != Strategy::ddp; }
  bool holds_all_gradients() const { return strategy_ <= Strategy::zero1; }
  Tensor own_gradients(int64_t u) const;
  Tensor own_values(int64_t u) const;
  Part part(int64_t u, int64_t begin, int64_t n, bool decays) const;
  void send_bucket();
  void begun_last_sum(int64_t u);
  void copy_gradients(size_t most_left);
  void catch_up(int64_t n_updated, int64_t n_arrived);
  void update_unit(int64_t u);
  void set(const Tensor& x, const float* values);

  Strategy strategy_;
  std::vector<DecayRun> decay_;
  UnitStore& values_;
  Backend& backend_;
  Collectives& collectives_;
  Shards update_;  // slices of this rank's updates: the whole of each unit under ddp
  Places places_;  // of gradients, where not all are held: one is added to, another summed
  bool values_are_parameters_;
  Arena::Id parameters_id_ = -1, m_id_ = -1, v_id_ = -1, own_gradients_id_ = -1;
  std::vector<Arena::Id> gradients_ids_;  // all of them, or places
  Tensor parameters_, m_, v_;             // [1, update_.shard_elems()]
  Tensor own_gradients_;                  // the same; zero2 and zero3
  std::vector<Tensor> gradients_;         // [units]
  std::vector<std::vector<Part>> parts_;  // [units]
  bool first_pass_ = true, last_pass_ = true;
  std::vector<int64_t> place_busy_;            // number of the call that still reads a place
  int64_t bucket_begin_ = 0, bucket_end_ = 0;  // gradients that are final and not on their way yet

  struct Sum {
    int64_t u, number;  // of the call that makes it
  };
  std::optional<HostState> host_;  // where the optimizer is offloaded
  std::deque<Sum> sums_;           // final, not copied to the host yet
  UpdatePart update_part_;         // of the update under way; empty: values are sent alone
  // Units that are done with, in the order of a forward pass; all are but in an update.
  int64_t n_updated_ = 0, n_arrived_ = 0;
};

}  // namespace utrain
