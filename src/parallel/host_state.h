// The optimizer's state of what a rank updates, in pinned host memory: parameters, Adam's moments
// and a copy of the gradients, [1, shard_elems] each in the trainable dtype. Gradients are copied
// out and new values in, unit by unit, beside what the device computes (Backend::copy_in_begin);
// values cross the link in the dtype the model computes in, rounded on the host as on the device.
//   A step: of each unit copy_gradients, once they are final; begin_step; of each unit begin_update,
//   AdamW on p, m, v, g, send, arrive. Values of the step before are then no longer read:
//   begin_update waits for a copy that the device began after their arrival.
#pragma once

#include <memory>
#include <vector>

#include "backend.h"
#include "core/arena.h"
#include "parallel/shards.h"

namespace utrain {

class HostState {
 public:
  // update: what is updated. backend: the device's, outlives this object.
  HostState(const Shards& update, Backend& backend, Arena& arena);
  void bind(const Arena& arena);  // the moments start at zero

  Backend& backend() { return *host_; }                              // computes on these
  Tensor p(int64_t u) const { return update_.own_of_shard(p_, u); }  // [1, own_elems(u)]
  Tensor m(int64_t u) const { return update_.own_of_shard(m_, u); }
  Tensor v(int64_t u) const { return update_.own_of_shard(v_, u); }
  Tensor g(int64_t u) const { return update_.own_of_shard(g_, u); }

  // Device. own: the gradients [1, own_elems(u)], not to be written before keep_gradients(u).
  void copy_gradients(int64_t u, const Tensor& own);
  void keep_gradients(int64_t u);  // what is called later begins when they are copied
  void begin_step();
  // The caller waits for the gradients.
  void begin_update(int64_t u);
  // own [1, own_elems(u)]: the values on the device; there for what is called after arrive(u).
  void send(int64_t u, const Tensor& own);
  void arrive(int64_t u) { backend_.copy_wait(sent_.at(static_cast<size_t>(u))); }
  void wait_for_sent();  // the caller waits, for all: p may then be written from outside

 private:
  bool is_narrower() const { return backend_.dtype() != backend_.trainable_dtype(); }

  Shards update_;
  Backend& backend_;
  std::unique_ptr<Backend> host_;
  Places places_;  // of values on their way, where they are narrower than the parameters
  Arena::Id p_id_, m_id_, v_id_, g_id_;
  std::vector<Arena::Id> values_ids_;  // [places]
  Tensor p_, m_, v_, g_;
  std::vector<Tensor> values_;
  std::vector<int64_t> place_read_;     // [places] ticket of the copy that reads it
  std::vector<int64_t> copied_, sent_;  // [units] tickets of the newest copies
};

}  // namespace utrain
