#include "parallel/host_state.h"

#include <fmt/core.h>

#include <algorithm>

namespace utrain {

HostState::HostState(const Shards& update, Backend& backend, Arena& arena)
    : update_(update), backend_(backend), places_(update, 2, &Shards::own_elems) {
  const auto declare = [&](const std::string& name, DType dtype, int64_t n) {
    return arena.declare(name, dtype, 1, n, MemoryClass::host);
  };
  const DType wide = backend.trainable_dtype();
  const int64_t n = update_.shard_elems();
  p_id_ = declare("parameters", wide, n);
  m_id_ = declare("Adam's first moment", wide, n);
  v_id_ = declare("Adam's second moment", wide, n);
  g_id_ = declare("gradients, copied out", wide, n);
  for (size_t place = 0; is_narrower() && place < places_.size(); ++place)
    values_ids_.push_back(declare(fmt::format("values on their way, place {}", place),
                                  backend.dtype(), places_.n_elem(place)));
  place_read_.assign(places_.size(), 0);
  copied_.assign(static_cast<size_t>(update_.n_units()), 0);
  sent_ = copied_;
}

void HostState::bind(const Arena& arena) {
  host_ = backend_.make_host_backend();
  p_ = arena[p_id_];
  m_ = arena[m_id_];
  v_ = arena[v_id_];
  g_ = arena[g_id_];
  for (const Arena::Id id : values_ids_) values_.push_back(arena[id]);
  host_->zero(m_);
  host_->zero(v_);
}

void HostState::copy_gradients(int64_t u, const Tensor& own) {
  copied_.at(static_cast<size_t>(u)) =
      backend_.copy_out_begin(g(u).data, own.data, own.cols * size_of(own.dtype));
}

void HostState::keep_gradients(int64_t u) {
  backend_.copy_wait(copied_.at(static_cast<size_t>(u)));
}

void HostState::begin_step() {
  std::fill(place_read_.begin(), place_read_.end(), 0);
  std::fill(sent_.begin(), sent_.end(), 0);
}

void HostState::begin_update(int64_t u) {
  int64_t& ticket = copied_.at(static_cast<size_t>(u));
  backend_.copy_wait_host(ticket);
  ticket = 0;
}

void HostState::send(int64_t u, const Tensor& own) {
  Tensor values = p(u);
  int64_t* read = nullptr;
  if (is_narrower()) {
    const size_t place = places_.of(u);
    read = &place_read_[place];
    backend_.copy_wait_host(*read);
    values = values_[place].columns(0, own.cols);
    host_->convert(values, p(u));
  }
  int64_t& ticket = sent_.at(static_cast<size_t>(u));
  ticket = backend_.copy_in_begin(own.data, values.data, own.cols * size_of(own.dtype));
  if (read != nullptr) *read = ticket;
}

void HostState::wait_for_sent() {
  for (const int64_t ticket : sent_) backend_.copy_wait_host(ticket);
}

}  // namespace utrain
