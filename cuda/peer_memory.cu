// By CUDA's interprocess handles: one opens the allocation that a tensor lies in.
#include "peer_memory.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "comm/collectives.h"
#include "cuda_check.h"
#include "driver_function.h"
#include "handle.h"

namespace utrain::cuda {
namespace {

constexpr size_t kHostBytes = 128, kHeadBytes = 8;

// Names the running system: handles of another one mean nothing here.
std::string host_identity() {
  char name[64] = "";
  gethostname(name, sizeof name - 1);
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string identity = name + std::string(std::istreambuf_iterator<char>(file), {});
  identity.resize(kHostBytes);
  return identity;
}

// Where an allocation begins; 0 where that cannot be told.
CUdeviceptr begin_of_allocation(const void* address) {
  auto* const range =
      driver_function<CUresult(CUdeviceptr*, size_t*, CUdeviceptr)>("cuMemGetAddressRange");
  CUdeviceptr begin = 0;
  size_t bytes = 0;
  const auto where = reinterpret_cast<CUdeviceptr>(address);
  return range != nullptr && range(&begin, &bytes, where) == CUDA_SUCCESS ? begin : 0;
}

// One tensor of a rank.
struct Record {
  cudaIpcMemHandle_t handle;
  int64_t offset = 0;  // in its allocation
  int64_t bytes = 0;
  std::byte head[kHeadBytes] = {};  // how it begins
};

int64_t bytes_of(const Tensor& x) {
  return x.n_elem() * size_of(x.dtype);
}

// What stands first in a tensor of at least kHeadBytes, on this GPU or another.
bool read_head(std::byte* head, const void* tensor) {
  const bool read = cudaMemcpy(head, tensor, kHeadBytes, cudaMemcpyDefault) == cudaSuccess;
  if (!read) cudaGetLastError();
  return read;
}

// Of one length on all ranks that have as many tensors.
std::string describe(std::span<const Tensor> own) {
  std::string text = host_identity();
  for (const Tensor& x : own) {
    Record record;
    std::memset(&record.handle, 0, sizeof record.handle);
    record.bytes = bytes_of(x);
    const CUdeviceptr begin = x.data == nullptr ? 0 : begin_of_allocation(x.data);
    const bool shared =
        begin != 0 && record.bytes >= static_cast<int64_t>(kHeadBytes) &&
        cudaIpcGetMemHandle(&record.handle, reinterpret_cast<void*>(begin)) == cudaSuccess &&
        read_head(record.head, x.data);
    cudaGetLastError();  // a handle that is not given is no failure of the next launch
    if (!shared) record.bytes = -1;
    record.offset = static_cast<int64_t>(reinterpret_cast<CUdeviceptr>(x.data) - begin);
    text.append(reinterpret_cast<const char*>(&record), sizeof record);
  }
  return text;
}

}  // namespace

std::unique_ptr<PeerMemory> PeerMemory::open(std::span<const Tensor> own, int rank, int ranks,
                                             const Gather& gather) {
  const std::string text = describe(own);
  const auto bytes = std::ssize(text);
  const DeviceMemory memory = make_device_memory(bytes * ranks);
  auto* all = static_cast<std::byte*>(memory.get());
  CUDA_CHECK(cudaMemcpy(all + rank * bytes, text.data(), bytes, cudaMemcpyHostToDevice));
  gather(all, bytes);
  std::vector<std::string> descriptions;
  for (int r = 0; r < ranks; ++r) {
    std::string& of_rank = descriptions.emplace_back(bytes, '\0');
    CUDA_CHECK(cudaMemcpy(of_rank.data(), all + r * bytes, bytes, cudaMemcpyDeviceToHost));
  }
  std::unique_ptr<PeerMemory> peers(new PeerMemory(rank));
  return peers->open(own, descriptions) ? std::move(peers) : nullptr;
}

bool PeerMemory::open(std::span<const Tensor> own, const std::vector<std::string>& descriptions) {
  const std::string host = host_identity();
  for (const Tensor& x : own) shards_[x.data].assign(descriptions.size(), x.data);
  for (size_t r = 0; r < descriptions.size(); ++r) {
    const std::string& text = descriptions[r];
    if (!text.starts_with(host)) return false;
    if (r == static_cast<size_t>(rank_)) continue;
    std::map<std::string, void*> allocations;  // by handle: each is opened once
    for (size_t i = 0; i < own.size(); ++i) {
      Record record;
      std::memcpy(&record, text.data() + kHostBytes + i * sizeof record, sizeof record);
      if (record.bytes < 0) return false;
      void*& begin =
          allocations[std::string(record.handle.reserved, sizeof record.handle.reserved)];
      if (begin == nullptr) {
        constexpr auto kFlags = cudaIpcMemLazyEnablePeerAccess;
        if (cudaIpcOpenMemHandle(&begin, record.handle, kFlags) != cudaSuccess) {
          cudaGetLastError();
          return false;
        }
        opened_.push_back(begin);
      }
      void* shard = static_cast<std::byte*>(begin) + record.offset;
      std::byte head[kHeadBytes];
      if (!read_head(head, shard) || std::memcmp(head, record.head, kHeadBytes) != 0) return false;
      shards_[own[i].data][r] = shard;
    }
  }
  return true;
}

PeerMemory::~PeerMemory() {
  for (void* begin : opened_) cudaIpcCloseMemHandle(begin);
}

void* PeerMemory::address(const void* own, int rank) const {
  return shards_.at(own)[static_cast<size_t>(rank)];
}

bool PeerMemory::gather(const Tensor& whole, const Tensor& shard, cudaStream_t stream) const {
  const auto found = shards_.find(shard.data);
  if (found == shards_.end()) return false;
  const int64_t n = whole.cols, size = size_of(whole.dtype);
  const auto ranks = static_cast<int>(found->second.size());
  for (int i = 0; i < ranks; ++i) {
    const int r = (rank_ + i) % ranks;  // not all from rank 0 first
    std::byte* to =
        static_cast<std::byte*>(whole.data) + Collectives::slice_begin(n, r, ranks) * size;
    CUDA_CHECK(cudaMemcpyAsync(to, found->second[static_cast<size_t>(r)],
                               Collectives::slice_size(n, r, ranks) * size, cudaMemcpyDefault,
                               stream));
  }
  return true;
}

}  // namespace utrain::cuda
