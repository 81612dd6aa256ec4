#include "train/state_copy.h"

#include <cstring>

namespace utrain {

std::vector<Slice> slices_of_rank(const TrainableLayout& layout, int rank, int ranks) {
  const Shards shards(layout.unit_begin(), rank, ranks);
  std::vector<Slice> slices;
  for (int64_t u = 0; u < shards.n_units(); ++u) {
    const int64_t begin = shards.begin(u) + shards.own_begin(u), n = shards.own_elems(u);
    if (n == 0) continue;
    if (!slices.empty() && slices.back().begin + slices.back().n_elem == begin)
      slices.back().n_elem += n;
    else
      slices.push_back({begin, n});
  }
  return slices;
}

StateCopy::StateCopy(const TrainableLayout& layout, Trainables& trainables,
                     const Collectives& world, Backend& backend, Arena& arena)
    : shards_(layout.unit_begin(), world.rank(), world.size()),
      slices_(slices_of_rank(layout, world.rank(), world.size())),
      trainables_(trainables),
      backend_(backend),
      id_(arena.declare("copy for checkpoints", DType::f32, kArrays, shards_.shard_elems(),
                        MemoryClass::host)) {}

void StateCopy::bind(const Arena& arena) {
  memory_ = static_cast<float*>(arena[id_].data);
}

void StateCopy::begin() {
  ASSERT(backend_.trainable_dtype() == DType::f32);
  trainables_.finish_update();
  const auto copy = [&](Array array, int64_t u, const Tensor& own) {
    float* to = at(array) + shards_.own_begin_in_shard(u);
    const int64_t first = shards_.own_begin(u) - trainables_.own_begin(u);
    const Tensor from = own.columns(first, shards_.own_elems(u));
    const int64_t bytes = from.cols * size_of(DType::f32);
    if (bytes == 0) return;
    if (trainables_.is_offloaded())
      std::memcpy(to, from.data, static_cast<size_t>(bytes));
    else
      newest_ = backend_.copy_out_begin(to, from.data, bytes);
  };
  for (int64_t u = 0; u < shards_.n_units(); ++u) {
    copy(kParameters, u, trainables_.parameters(u));
    copy(kM, u, trainables_.m(u));
    copy(kV, u, trainables_.v(u));
  }
}

void StateCopy::keep() {
  backend_.copy_wait(newest_);
  newest_ = 0;
}

void StateCopy::wait() {
  backend_.copy_wait_host(newest_);
  newest_ = 0;
}

ShardState StateCopy::state() const {
  return {slices_, at(kParameters), at(kM), at(kV)};
}

}  // namespace utrain
