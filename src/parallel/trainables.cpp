#include "parallel/trainables.h"

#include <algorithm>

#include "core/convert.h"

namespace utrain {

namespace {

// 16 MB: some hundred microseconds of a link, so that few layers wait for the end.
constexpr int64_t kBucketElems = int64_t{4} << 20;

}  // namespace

Trainables::Trainables(Strategy strategy, std::vector<DecayRun> decay, UnitStore& values,
                       Backend& backend, Collectives& collectives, Arena& arena)
    : strategy_(strategy),
      decay_(std::move(decay)),
      values_(values),
      backend_(backend),
      collectives_(collectives),
      update_(strategy == Strategy::ddp
                  ? Shards(values.shards().unit_begin(), 0, 1)
                  : Shards(values.shards().unit_begin(), collectives.rank(), collectives.size())),
      places_(values.shards()),
      values_are_parameters_(backend.dtype() == backend.trainable_dtype()) {
  const DType wide = backend.trainable_dtype();
  const int64_t n = update_.shard_elems();
  if (!values_are_parameters_) {
    // Wider copies of weights are state of the optimizer.
    const MemoryClass of_copies = values.memory_class() == MemoryClass::adapters
                                      ? MemoryClass::adapters
                                      : MemoryClass::optimizer;
    parameters_id_ = arena.declare("parameters", wide, 1, n, of_copies);
  }
  m_id_ = arena.declare("Adam's first moment", wide, 1, n, MemoryClass::optimizer);
  v_id_ = arena.declare("Adam's second moment", wide, 1, n, MemoryClass::optimizer);
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
  if (!values_are_parameters_) parameters_ = arena[parameters_id_];
  m_ = arena[m_id_];
  v_ = arena[v_id_];
  backend_.zero(m_);
  backend_.zero(v_);
  if (!holds_all_gradients()) own_gradients_ = arena[own_gradients_id_];
  for (int64_t u = 0; u < n_units(); ++u) {
    gradients_.push_back(holds_all_gradients()
                             ? update_.unit_of(arena[gradients_ids_[0]], u)
                             : arena[gradients_ids_[places_.of(u)]].columns(0, update_.n_elem(u)));
  }
  for (int64_t u = 0; u < n_units(); ++u) {
    const int64_t begin = update_.begin(u) + update_.own_begin(u),
                  end = begin + update_.own_elems(u);
    for (const DecayRun& run : decay_) {
      const int64_t first = std::max(begin, run.begin);
      const int64_t n = std::min(end, run.begin + run.n_elem) - first;
      if (n <= 0) continue;
      const auto part = [&](const Tensor& own) { return own.columns(first - begin, n); };
      parts_.push_back({part(parameters(u)), part(update_.own_of_shard(m_, u)),
                        part(update_.own_of_shard(v_, u)), part(own_gradients(u)), run.decays});
    }
  }
}

// [1, own_elems(u)] of the update's slices, likewise below.
Tensor Trainables::parameters(int64_t u) const {
  if (!values_are_parameters_) return update_.own_of_shard(parameters_, u);
  return updates_slices() ? values_.own(u) : values_.unit(u);
}

Tensor Trainables::own_gradients(int64_t u) const {
  return holds_all_gradients() ? update_.own_of_unit(gradients(u), u)
                               : update_.own_of_shard(own_gradients_, u);
}

void Trainables::begin_pass(bool first, bool last) {
  first_pass_ = first;
  last_pass_ = last;
  bucket_begin_ = bucket_end_ = 0;
  if (!first || !holds_all_gradients()) return;
  for (const Tensor& unit : gradients_) backend_.zero(unit);
}

void Trainables::begin_gradients(int64_t u) {
  if (holds_all_gradients()) return;
  collectives_.wait(place_busy_[places_.of(u)]);
  backend_.zero(gradients(u));
  // What earlier passes summed up goes into the sum of this one, in this rank's part of it.
  if (!first_pass_) backend_.convert(update_.own_of_unit(gradients(u), u), own_gradients(u));
}

void Trainables::end_gradients(int64_t u) {
  if (!holds_all_gradients()) {
    collectives_.begin_reduce_scatter_sum(own_gradients(u), gradients(u));
    place_busy_[places_.of(u)] = collectives_.number();
    return;
  }
  if (!last_pass_) return;
  if (strategy_ == Strategy::zero1) {
    collectives_.begin_reduce_scatter_sum(own_gradients(u), gradients(u));
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
  bucket_end_ = bucket_begin_;
}

void Trainables::finish_gradients() {
  send_bucket();
  collectives_.finish();
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

void Trainables::parameters_changed() {
  if (!values_are_parameters_) {
    for (int64_t u = 0; u < n_units(); ++u)
      backend_.convert(updates_slices() ? values_.own(u) : values_.unit(u), parameters(u));
  }
  if (updates_slices()) values_.own_changed();
}

void Trainables::set_parameters(int64_t u, const float* host) {
  const Tensor own = parameters(u);
  std::vector<std::byte> bytes(static_cast<size_t>(own.cols * size_of(own.dtype)));
  from_float(own.dtype, host, own.cols, bytes.data());
  backend_.upload(own.data, bytes.data(), static_cast<int64_t>(bytes.size()));
}

std::vector<float> Trainables::on_host(const Tensor& x) const {
  std::vector<std::byte> bytes(static_cast<size_t>(x.cols * size_of(x.dtype)));
  backend_.download(bytes.data(), x.data, static_cast<int64_t>(bytes.size()));
  std::vector<float> values(static_cast<size_t>(x.cols));
  to_float(x.dtype, bytes.data(), x.cols, values.data());
  return values;
}

std::vector<float> Trainables::parameters_on_host(int64_t u) {
  if (!updates_slices()) return on_host(parameters(u));
  collectives_.all_gather(gradients(u), parameters(u));
  return on_host(gradients(u));
}

std::vector<float> Trainables::gradients_on_host(int64_t u) {
  if (updates_slices()) collectives_.all_gather(gradients(u), own_gradients(u));
  return on_host(gradients(u));
}

}  // namespace utrain
