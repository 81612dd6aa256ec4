// ncclAllReduce chooses an order by algorithm and size, so it cannot keep the order promise of
// comm/collectives.h: every rank owns one slice, receives it from all others and adds in rank order.
#include "rank_exchange.h"

#include <algorithm>

#include "comm/collectives.h"
#include "cuda_check.h"
#include "rank_sum.h"

namespace utrain::cuda {
namespace {

constexpr int64_t kPartAlignment = 256;

int64_t slice_begin(int64_t n, int rank, int size) {
  return Collectives::slice_begin(n, rank, size);
}
int64_t slice_size(int64_t n, int rank, int size) {
  return Collectives::slice_size(n, rank, size);
}

// Nothing where it is there already.
void copy(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0 || to == from) return;
  CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}

int64_t bytes_of_part(int64_t scratch_bytes, int size) {
  const int64_t bytes = scratch_bytes / std::max(1, size - 1);
  return std::max(kPartAlignment, bytes / kPartAlignment * kPartAlignment);
}

}  // namespace

RankExchange::RankExchange(int rank, int size, int64_t scratch_bytes)
    : rank_(rank),
      size_(size),
      part_bytes_(bytes_of_part(scratch_bytes, size)),
      scratch_(make_device_memory(PeerMailbox::bytes(size, part_bytes_))) {}

void RankExchange::open_mailbox(const Gather& gather, const Agree& agree) {
  mailbox_ = PeerMailbox::open(scratch_.get(), part_bytes_, rank_, size_, gather, agree);
}

void RankExchange::share(std::span<const Tensor> shards, const Gather& gather, const Agree& agree) {
  if (!mailbox_) return;
  auto peers = PeerMemory::open(shards, rank_, size_, gather);
  if (agree(peers != nullptr)) peers_.push_back(std::move(peers));
}

void RankExchange::sum_slice(const NcclCommunicator& nccl, const Tensor& shard, const Tensor& x,
                             cudaStream_t stream) {
  ASSERT(shard.dtype == x.dtype);
  if (x.dtype == DType::f32)
    return sum_slice(nccl, shard.as<float>(), x.as<float>(), x.cols, stream);
  if (x.dtype == DType::f64)
    return sum_slice(nccl, shard.as<double>(), x.as<double>(), x.cols, stream);
  ASSERT(!"sums over ranks are taken in float32 or float64");
}

// In place is safe: a rank writes its own slice only, and never sends that.
template <class T>
void RankExchange::sum_slice(const NcclCommunicator& nccl, T* shard, const T* x, int64_t n,
                             cudaStream_t stream) {
  const int64_t size = sizeof(T), window_elems = part_bytes_ / size;
  std::vector<Parcel> to = parcels();
  for (int64_t begin = 0; begin < longest_slice(n); begin += window_elems) {
    for (int r = 0; r < size_; ++r)
      to[static_cast<size_t>(r)] = {x + slice_begin(n, r, size_) + begin,
                                    elems_in_window(n, r, begin, window_elems) * size};
    const int64_t own = elems_in_window(n, rank_, begin, window_elems);
    receive(nccl, to, own * size, stream);
    const RankParts<T> parts{x + slice_begin(n, rank_, size_) + begin,
                             static_cast<const T*>(scratch_.get()), window_elems, rank_, size_};
    sum_in_rank_order(shard + begin, parts, own, stream);
    if (mailbox_) mailbox_->empty(stream);
  }
}

// parcels [size]: to each rank. Those to this rank have bytes_from_each.
void RankExchange::receive(const NcclCommunicator& nccl, const std::vector<Parcel>& parcels,
                           int64_t bytes_from_each, cudaStream_t stream) {
  if (mailbox_) return mailbox_->exchange(parcels, stream);
  auto* scratch = static_cast<std::byte*>(scratch_.get());
  NCCL_CHECK(ncclGroupStart());
  for (int i = 1; i < size_; ++i) {
    const int to = (rank_ + i) % size_, from = (rank_ + size_ - i) % size_;
    const Parcel& parcel = parcels[static_cast<size_t>(to)];
    nccl.send(parcel.data, parcel.bytes, to, stream);
    nccl.receive(scratch + part_bytes_ * (from < rank_ ? from : from - 1), bytes_from_each, from,
                 stream);
  }
  NCCL_CHECK(ncclGroupEnd());
}

void RankExchange::gather(const NcclCommunicator& nccl, const Tensor& whole, const Tensor& shard,
                          cudaStream_t stream) {
  ASSERT(shard.dtype == whole.dtype);
  const int64_t n = whole.cols;
  if (n == 0) return;
  for (const auto& peers : peers_) {
    if (peers->gather(whole, shard, stream)) return;
  }
  if (mailbox_)
    gather_by_mail(whole, shard, stream);
  else if (n % (size_ * Collectives::kBlock) == 0)  // equal slices: NCCL's own way
    nccl.gather(whole.data, shard.data, shard.cols * size_of(shard.dtype), stream);
  else
    send_slices(nccl, whole, shard, stream);
}

void RankExchange::gather_by_mail(const Tensor& whole, const Tensor& shard, cudaStream_t stream) {
  const int64_t n = whole.cols, size = size_of(whole.dtype), window_elems = part_bytes_ / size;
  copy(place_of(whole, rank_), shard.data, shard.cols * size, stream);
  std::vector<Parcel> to = parcels();
  for (int64_t begin = 0; begin < longest_slice(n); begin += window_elems) {
    const auto* own = static_cast<const std::byte*>(shard.data) + begin * size;
    std::fill(to.begin(), to.end(),
              Parcel{own, elems_in_window(n, rank_, begin, window_elems) * size});
    mailbox_->exchange(to, stream);
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      copy(place_of(whole, r) + begin * size, mailbox_->part_of(r),
           elems_in_window(n, r, begin, window_elems) * size, stream);
    }
    mailbox_->empty(stream);
  }
}

void RankExchange::send_slices(const NcclCommunicator& nccl, const Tensor& whole,
                               const Tensor& shard, cudaStream_t stream) {
  const int64_t n = whole.cols, size = size_of(whole.dtype);
  copy(place_of(whole, rank_), shard.data, shard.cols * size, stream);
  NCCL_CHECK(ncclGroupStart());
  for (int i = 1; i < size_; ++i) {
    const int next = (rank_ + i) % size_, from = (rank_ + size_ - i) % size_;
    nccl.send(shard.data, shard.cols * size, next, stream);
    nccl.receive(place_of(whole, from), slice_size(n, from, size_) * size, from, stream);
  }
  NCCL_CHECK(ncclGroupEnd());
}

void RankExchange::use_all(const NcclCommunicator& nccl, cudaStream_t stream) {
  const int64_t n = size_ * Collectives::kBlock, bytes = n * size_of(DType::f32);
  const DeviceMemory probe = make_device_memory(std::max(bytes, part_bytes_));
  CUDA_CHECK(cudaMemsetAsync(probe.get(), 0, std::max(bytes, part_bytes_), stream));
  const Tensor whole = make_tensor(probe.get(), DType::f32, 1, n);
  const Tensor own = whole.columns(slice_begin(n, rank_, size_), Collectives::kBlock);
  sum_slice(nccl, own, whole, stream);
  if (!mailbox_ && size_ > 1) {
    send_slices(nccl, whole, own, stream);
    const int64_t share = part_bytes_ / size_ / kPartAlignment * kPartAlignment;
    auto* all = static_cast<std::byte*>(probe.get());
    nccl.gather(all, all + rank_ * share, share, stream);
  }
  nccl.broadcast(probe.get(), part_bytes_, 0, stream);
  CUDA_CHECK(cudaStreamSynchronize(stream));
}

void RankExchange::meet(cudaStream_t stream) {
  ASSERT(mailbox_ != nullptr);
  mailbox_->exchange(parcels(), stream);
  mailbox_->empty(stream);
}

void RankExchange::drain(cudaStream_t stream) {
  if (mailbox_) mailbox_->drain(stream);
}

int64_t RankExchange::longest_slice(int64_t n) const {
  int64_t longest = 0;
  for (int r = 0; r < size_; ++r) longest = std::max(longest, slice_size(n, r, size_));
  return longest;
}

// Of a rank's slice in a window of all slices: 0 where the slice is shorter.
int64_t RankExchange::elems_in_window(int64_t n, int rank, int64_t begin,
                                      int64_t window_elems) const {
  return std::clamp<int64_t>(slice_size(n, rank, size_) - begin, 0, window_elems);
}

std::byte* RankExchange::place_of(const Tensor& whole, int rank) const {
  return static_cast<std::byte*>(whole.data) +
         slice_begin(whole.cols, rank, size_) * size_of(whole.dtype);
}

}  // namespace utrain::cuda
