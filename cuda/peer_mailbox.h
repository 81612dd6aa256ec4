// What the other ranks of a node send to this one: a part of its memory for each. The sender's copy
// engines write there over NVLink or PCIe and then a number; the receiver's stream waits for the
// number, and writes one back when it has read. None of that takes a multiprocessor: a kernel that
// waits for a slower rank, as those of NCCL, takes them from the products that run beside it.
//   All ranks make the same exchanges in the same order, each rank on one stream.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "peer_memory.h"

namespace utrain::cuda {

struct Parcel {
  const void* data = nullptr;
  int64_t bytes = 0;  // at most those of a part
};

class PeerMailbox {
 public:
  // True where all ranks say true.
  using Agree = std::function<bool(bool)>;

  // Parts for the other ranks, and two numbers for each rank.
  static int64_t bytes(int ranks, int64_t part_bytes) {
    return (ranks - 1) * part_bytes + 2 * ranks * static_cast<int64_t>(sizeof(uint32_t));
  }
  // memory [bytes(ranks, part_bytes)] on the device, 16-byte aligned, as are its parts; outlives
  // this. Collective. Null, on all ranks, where a rank cannot reach the memory of another.
  static std::unique_ptr<PeerMailbox> open(void* memory, int64_t part_bytes, int rank, int ranks,
                                           const PeerMemory::Gather& gather, const Agree& agree);

  // parcels [ranks], that to this rank unused. When the stream gets behind this, the parcel of each
  // other rank to this one lies in part_of it, and stays until empty().
  void exchange(std::span<const Parcel> parcels, cudaStream_t stream);
  void empty(cudaStream_t stream);  // once after each exchange
  // The stream waits until the others have read all that was sent.
  void drain(cudaStream_t stream);

  const std::byte* part_of(int rank) const { return part(memory_, rank_, rank); }

 private:
  using WriteValue = CUresult(CUstream, CUdeviceptr, cuuint32_t, unsigned);

  PeerMailbox(void* memory, int64_t part_bytes, int rank, int ranks);
  // Of the memory of rank `of`.
  std::byte* part(std::byte* memory, int of, int from) const {
    return memory + (from < of ? from : from - 1) * part_bytes_;
  }
  CUdeviceptr arrived(std::byte* memory, int from) const;
  CUdeviceptr read(std::byte* memory, int by) const;
  std::byte* memory_of(int rank) const;
  bool greet();
  bool is_greeted() const;
  void write(CUdeviceptr number, uint32_t value, cudaStream_t stream) const;
  void wait(CUdeviceptr number, uint32_t value, cudaStream_t stream) const;

  std::byte* memory_;
  int64_t part_bytes_;
  int rank_, ranks_;
  WriteValue* write_value_;  // from the driver
  WriteValue* wait_value_;   // of the same type
  std::unique_ptr<PeerMemory> peers_;
  std::vector<uint32_t> sent_, received_;  // [ranks] exchanges so far, the greeting among them
};

}  // namespace utrain::cuda
