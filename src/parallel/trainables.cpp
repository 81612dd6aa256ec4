#include "parallel/trainables.h"

#include <algorithm>

#include "core/convert.h"

namespace utrain {

namespace {

// 64 MB. A sum beside the backward pass holds multiprocessors until the slowest rank has come to it,
// and a product that finds them taken runs up to twice as long: few sums, and a last one that a
// link does in a millisecond.
constexpr int64_t kBucketElems = int64_t{16} << 20;

}  // namespace

Trainables::Trainables(const Options& options, std::vector<DecayRun> decay, UnitStore& values,
                       Backend& backend, Collectives& collectives, Arena& arena)
    : strategy_(options.strategy),
      decay_(std::move(decay)),
      values_(values),
      backend_(backend),
      collectives_(collectives),
      update_(strategy_ == Strategy::ddp
                  ? Shards(values.shards().unit_begin(), 0, 1)
                  : Shards(values.shards().unit_begin(), collectives.rank(), collectives.size())),
      places_(values.shards()),
      values_are_parameters_(backend.dtype() == backend.trainable_dtype() &&
                             !options.offload_optimizer) {
  const DType wide = backend.trainable_dtype();
  const int64_t n = update_.shard_elems();
  if (options.offload_optimizer) {
    host_.emplace(update_, backend, arena);
  } else if (!values_are_parameters_) {
    // Wider copies of weights are state of the optimizer.
    const MemoryClass of_copies = values.memory_class() == MemoryClass::adapters
                                      ? MemoryClass::adapters
                                      : MemoryClass::optimizer;
    parameters_id_ = arena.declare("parameters", wide, 1, n, of_copies);
  }
  if (!host_) {
    m_id_ = arena.declare("Adam's first moment", wide, 1, n, MemoryClass::optimizer);
    v_id_ = arena.declare("Adam's second moment", wide, 1, n, MemoryClass::optimizer);
  }
  const auto declare_gradients = [&](const std::string& name, int64_t n_elem) {
    return arena.declare(name, wide, 1, n_elem, MemoryClass::gradients);
  };
  if (holds_all_gradients()) {
    gradients_ids_ = {declare_gradients("gradients", n_elem())};
    return;
  }
  own_gradients_id_ = declare_gradients("gradients, own slices", n);
  for (size_t place = 0; place < places_.size(); ++place)
    gradients_ids_.push_back(declare_gradients(fmt::format("gradients of a unit, place {}", place),
                                               places_.n_elem(place)));
  place_busy_.assign(places_.size(), 0);
}

void Trainables::bind(const Arena& arena) {
  if (host_) {
    host_->bind(arena);
    n_updated_ = n_arrived_ = n_units();
  } else {
    if (!values_are_parameters_) parameters_ = arena[parameters_id_];
    m_ = arena[m_id_];
    v_ = arena[v_id_];
    backend_.zero(m_);
    backend_.zero(v_);
  }
  if (!holds_all_gradients()) own_gradients_ = arena[own_gradients_id_];
  for (int64_t u = 0; u < n_units(); ++u) {
    gradients_.push_back(holds_all_gradients()
                             ? update_.unit_of(arena[gradients_ids_[0]], u)
                             : arena[gradients_ids_[places_.of(u)]].columns(0, update_.n_elem(u)));
  }
  parts_.resize(static_cast<size_t>(n_units()));
  for (int64_t u = 0; u < n_units(); ++u) {
    const int64_t begin = update_.begin(u) + update_.own_begin(u),
                  end = begin + update_.own_elems(u);
    for (const DecayRun& run : decay_) {
      const int64_t first = std::max(begin, run.begin);
      const int64_t n = std::min(end, run.begin + run.n_elem) - first;
      if (n > 0) parts_[static_cast<size_t>(u)].push_back(part(u, first - begin, n, run.decays));
    }
  }
}

// Elements [begin, begin + n) of what this rank updates of a unit.
Trainables::Part Trainables::part(int64_t u, int64_t begin, int64_t n, bool decays) const {
  const auto g = host_ ? host_->g(u) : own_gradients(u);
  return {parameters(u).columns(begin, n), m(u).columns(begin, n), v(u).columns(begin, n),
          g.columns(begin, n), decays};
}

// [1, own_elems(u)] of the update's slices, likewise below.
Tensor Trainables::parameters(int64_t u) const {
  if (host_) return host_->p(u);
  return values_are_parameters_ ? own_values(u) : update_.own_of_shard(parameters_, u);
}

Tensor Trainables::own_values(int64_t u) const {
  return updates_slices() ? values_.own(u) : values_.unit(u);
}

Tensor Trainables::own_gradients(int64_t u) const {
  return holds_all_gradients() ? update_.own_of_unit(gradients(u), u)
                               : update_.own_of_shard(own_gradients_, u);
}

std::vector<Tensor> Trainables::replicated_values() const {
  std::vector<Tensor> units;
  for (int64_t u = 0; u < n_units() && !values_.is_sharded(); ++u) units.push_back(values_.unit(u));
  return units;
}

std::vector<Tensor> Trainables::replicated_parameters() const {
  if (updates_slices() || host_ || values_are_parameters_) return {};
  return {parameters_};
}

std::vector<Tensor> Trainables::replicated_moments() const {
  if (updates_slices() || host_) return {};
  return {m_, v_};
}

void Trainables::begin_pass(bool first, bool last) {
  first_pass_ = first;
  last_pass_ = last;
  bucket_begin_ = bucket_end_ = 0;
}

void Trainables::begin_gradients(int64_t u) {
  if (host_) host_->keep_gradients(u);
  if (holds_all_gradients()) {
    if (first_pass_) backend_.zero(gradients(u));
    return;
  }
  collectives_.wait(place_busy_[places_.of(u)]);
  backend_.zero(gradients(u));
  // What earlier passes summed up goes into the sum of this one, in this rank's part of it.
  if (!first_pass_) backend_.convert(update_.own_of_unit(gradients(u), u), own_gradients(u));
}

void Trainables::end_gradients(int64_t u) {
  if (!holds_all_gradients()) {
    collectives_.begin_reduce_scatter_sum(own_gradients(u), gradients(u));
    place_busy_[places_.of(u)] = collectives_.number();
    if (last_pass_) begun_last_sum(u);
    return;
  }
  if (!last_pass_) return;
  if (strategy_ == Strategy::zero1) {
    collectives_.begin_reduce_scatter_sum(own_gradients(u), gradients(u));
    begun_last_sum(u);
    return;
  }
  const int64_t begin = update_.begin(u), end = begin + update_.n_elem(u);
  if (end != bucket_begin_) {
    send_bucket();
    bucket_end_ = end;
  }
  bucket_begin_ = begin;
  if (bucket_end_ - bucket_begin_ >= kBucketElems) send_bucket();
}

void Trainables::send_bucket() {
  if (bucket_begin_ == bucket_end_) return;
  const Tensor first = gradients(0);  // units follow one another
  const Tensor flat = make_tensor(first.data, first.dtype, 1, n_elem());
  collectives_.begin_all_reduce_sum(flat.columns(bucket_begin_, bucket_end_ - bucket_begin_));
  for (int64_t u = n_units() - 1; u >= 0; --u) {
    if (update_.begin(u) >= bucket_begin_ && update_.begin(u + 1) <= bucket_end_) begun_last_sum(u);
  }
  bucket_end_ = bucket_begin_;
}

// Its result goes to the host. What is asked to wait for it is the device, so sums that have just
// begun are left on their way.
void Trainables::begun_last_sum(int64_t u) {
  constexpr size_t kOnTheirWay = 2;
  if (!host_ || update_.own_elems(u) == 0) return;
  sums_.push_back({u, collectives_.number()});
  copy_gradients(kOnTheirWay);
}

void Trainables::copy_gradients(size_t most_left) {
  for (; sums_.size() > most_left; sums_.pop_front()) {
    const auto [u, number] = sums_.front();
    collectives_.wait(number);
    host_->copy_gradients(u, own_gradients(u));
  }
}

void Trainables::finish_gradients() {
  send_bucket();
  collectives_.finish();
  copy_gradients(0);
}

void Trainables::sum_of_squares(const Tensor& block_sums) {
  constexpr int64_t kBlock = Collectives::kBlock;
  if (updates_slices()) backend_.zero(block_sums);
  for (int64_t u = 0; u < n_units(); ++u) {
    const int64_t begin = (update_.begin(u) + update_.own_begin(u)) / kBlock;
    const int64_t n = update_.own_elems(u) / kBlock;
    if (n > 0) backend_.sum_of_squares(block_sums.columns(begin, n), own_gradients(u));
  }
  // Each block has one rank's sum and zeros: exact.
  if (updates_slices()) collectives_.all_reduce_sum(block_sums);
}

void Trainables::update(UpdatePart update_part) {
  if (host_) {
    ASSERT(n_arrived_ == n_units());  // a pass asked for all of them
    host_->begin_step();
    update_part_ = std::move(update_part);
    n_updated_ = n_arrived_ = 0;
    return;
  }
  for (const std::vector<Part>& unit : parts_)
    for (const Part& part : unit) update_part(part);
  parameters_changed();
}

void Trainables::parameters_changed() {
  if (host_) {
    finish_update();
    update_part_ = nullptr;
    n_updated_ = n_arrived_ = 0;
    finish_update();
    return;
  }
  if (!values_are_parameters_) {
    for (int64_t u = 0; u < n_units(); ++u) backend_.convert(own_values(u), parameters(u));
  }
  if (updates_slices()) values_.own_changed();
}

// One unit more has arrived, since a gather of it may begin now, and one more is on its way.
void Trainables::get(int64_t u) {
  if (n_arrived_ == n_units() || !host_) return;
  const int64_t position = u == n_units() - 1 ? 0 : u + 1;
  catch_up(position + 3, position + 2);
}

void Trainables::finish_update() {
  if (!host_ || n_arrived_ == n_units()) return;
  catch_up(n_units(), n_units());
  collectives_.finish();
}

void Trainables::catch_up(int64_t n_updated, int64_t n_arrived) {
  const auto unit_at = [&](int64_t position) { return (position + n_units() - 1) % n_units(); };
  for (; n_updated_ < std::min(n_updated, n_units()); ++n_updated_)
    update_unit(unit_at(n_updated_));
  for (; n_arrived_ < std::min(n_arrived, n_units()); ++n_arrived_) {
    host_->arrive(unit_at(n_arrived_));
    if (updates_slices()) values_.own_changed(unit_at(n_arrived_));
  }
}

void Trainables::update_unit(int64_t u) {
  if (update_part_) {
    host_->begin_update(u);
    for (const Part& part : parts_[static_cast<size_t>(u)]) update_part_(part);
  }
  host_->send(u, own_values(u));
}

void Trainables::set_parameters(int64_t u, int64_t first, std::span<const float> values) {
  if (host_) {
    finish_update();
    host_->wait_for_sent();
  }
  set(parameters(u).columns(first, std::ssize(values)), values.data());
}

void Trainables::set_moments(int64_t u, int64_t first, std::span<const float> m,
                             std::span<const float> v) {
  finish_update();
  set(this->m(u).columns(first, std::ssize(m)), m.data());
  set(this->v(u).columns(first, std::ssize(v)), v.data());
}

// x: of what update_backend() computes on.
void Trainables::set(const Tensor& x, const float* values) {
  if (host_) {
    from_float(x.dtype, values, x.cols, x.data);
    return;
  }
  std::vector<std::byte> bytes(static_cast<size_t>(x.cols * size_of(x.dtype)));
  from_float(x.dtype, values, x.cols, bytes.data());
  backend_.upload(x.data, bytes.data(), static_cast<int64_t>(bytes.size()));
}

Trainables::Gathered Trainables::gather_parameters(int64_t u) {
  finish_update();
  Tensor own = parameters(u);
  if (!updates_slices()) return {own, is_offloaded()};
  if (host_) {
    host_->keep_gradients(u);
    own = update_.own_of_unit(gradients(u), u);
    backend_.upload(own.data, host_->p(u).data, own.cols * size_of(own.dtype));
  }
  collectives_.all_gather(gradients(u), own);
  return {gradients(u)};
}

Trainables::Gathered Trainables::gather_gradients(int64_t u) {
  if (host_) host_->keep_gradients(u);
  if (updates_slices()) collectives_.all_gather(gradients(u), own_gradients(u));
  return {gradients(u)};
}

void Trainables::read(const Gathered& unit, int64_t first, std::span<float> out) const {
  const Tensor piece = unit.values.columns(first, std::ssize(out));
  if (unit.is_in_host) return to_float(piece.dtype, piece.data, piece.cols, out.data());
  std::vector<std::byte> bytes(static_cast<size_t>(piece.cols * size_of(piece.dtype)));
  backend_.download(bytes.data(), piece.data, std::ssize(bytes));
  to_float(piece.dtype, bytes.data(), piece.cols, out.data());
}

}  // namespace utrain
