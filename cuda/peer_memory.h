// Tensors of the other ranks of a node, in this rank's address space. A GPU's copy engines fetch them
// over NVLink or PCIe: no multiprocessor is taken from the computation, and no rank waits in a
// kernel for another one, as in a collective of NCCL. Whoever copies knows that the tensor is
// complete and stays as it is meanwhile (Collectives::share, PeerMailbox).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace utrain::cuda {

class PeerMemory {
 public:
  // all [ranks * bytes] on the device, where each rank has written its part: gives all ranks all
  // parts, and waits for it.
  using Gather = std::function<void(std::byte* all, int64_t bytes)>;
  // own: this rank's tensors, written; as many on every rank, each in its place. Collective. Null
  // where a rank is on another host or its memory cannot be reached, or does not read as its owner
  // says: that may be so on one rank alone.
  static std::unique_ptr<PeerMemory> open(std::span<const Tensor> own, int rank, int ranks,
                                          const Gather& gather);
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // Of the tensor of a rank in the place of this rank's own, which is shared.
  void* address(const void* own, int rank) const;

  // whole = the slices of all ranks, whose tensor in the place of `shard` each is one; false where
  // shard is not shared.
  bool gather(const Tensor& whole, const Tensor& shard, cudaStream_t stream) const;

 private:
  explicit PeerMemory(int rank) : rank_(rank) {}
  bool open(std::span<const Tensor> own, const std::vector<std::string>& descriptions);

  int rank_;
  std::vector<void*> opened_;
  std::map<const void*, std::vector<void*>> shards_;  // by own: [ranks]
};

}  // namespace utrain::cuda
