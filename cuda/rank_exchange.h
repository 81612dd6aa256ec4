// Slices that go from each rank to the others, on one stream: sums in rank order and gathers, by
// NCCL, or by copy engines where all ranks reach each other's memory (peer_mailbox.h). What arrives
// lies in scratch memory, a part for each other rank; longer slices go in windows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "handle.h"
#include "nccl_communicator.h"
#include "peer_mailbox.h"
#include "peer_memory.h"

namespace utrain::cuda {

class RankExchange {
 public:
  using Gather = PeerMemory::Gather;
  using Agree = PeerMailbox::Agree;

  // scratch_bytes: of all parts, at least 256 each.
  RankExchange(int rank, int size, int64_t scratch_bytes);

  // Collective. Copy engines send from now on, where they can.
  void open_mailbox(const Gather& gather, const Agree& agree);
  // Collective, after it; nothing without copy engines. Gathers of these shards may read those of
  // the others where they lie (Collectives::share).
  void share(std::span<const Tensor> shards, const Gather& gather, const Agree& agree);
  bool shares() const { return !peers_.empty(); }

  // As Collectives' reduce_scatter_sum and all_gather; x, whole and shard flat.
  void sum_slice(const NcclCommunicator& nccl, const Tensor& shard, const Tensor& x,
                 cudaStream_t stream);
  void gather(const NcclCommunicator& nccl, const Tensor& whole, const Tensor& shard,
              cudaStream_t stream);
  // Every call of NCCL that sums and gathers may make.
  void use_all(const NcclCommunicator& nccl, cudaStream_t stream);
  // What follows on the stream begins when all ranks have come to this. After share() alone.
  void meet(cudaStream_t stream);
  // Until the others have read what was sent: the memory may go then.
  void drain(cudaStream_t stream);

  int64_t scratch_bytes() const { return PeerMailbox::bytes(size_, part_bytes_); }

 private:
  template <class T>
  void sum_slice(const NcclCommunicator& nccl, T* shard, const T* x, int64_t n,
                 cudaStream_t stream);
  void send_slices(const NcclCommunicator& nccl, const Tensor& whole, const Tensor& shard,
                   cudaStream_t stream);
  void gather_by_mail(const Tensor& whole, const Tensor& shard, cudaStream_t stream);
  void receive(const NcclCommunicator& nccl, const std::vector<Parcel>& parcels,
               int64_t bytes_from_each, cudaStream_t stream);
  std::vector<Parcel> parcels() const { return std::vector<Parcel>(static_cast<size_t>(size_)); }
  int64_t longest_slice(int64_t n) const;
  int64_t elems_in_window(int64_t n, int rank, int64_t begin, int64_t window_elems) const;
  std::byte* place_of(const Tensor& whole, int rank) const;

  int rank_, size_;
  int64_t part_bytes_;
  DeviceMemory scratch_;                  // [size - 1] parts, and the numbers of a mailbox
  std::unique_ptr<PeerMailbox> mailbox_;  // in scratch_; null: NCCL sends
  std::vector<std::unique_ptr<PeerMemory>> peers_;  // [calls of share]
};

}  // namespace utrain::cuda
