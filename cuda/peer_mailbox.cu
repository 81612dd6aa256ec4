// By CUDA's interprocess handles and memory operations of streams. Numbers only grow, and are
// compared so that they may wrap.
#include "peer_mailbox.h"

#include <unistd.h>

#include <cstring>

#include "core/error.h"
#include "cuda_check.h"
#include "driver_function.h"

namespace utrain::cuda {
namespace {

constexpr uint32_t kGreeting = 1;

void check_driver(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) return;
  fail(ExitCode::internal, what, fmt::format("CUDA driver error {}", static_cast<int>(status)),
       "see whether another rank or its GPU was lost; dmesg may tell more");
}

}  // namespace

PeerMailbox::PeerMailbox(void* memory, int64_t part_bytes, int rank, int ranks)
    : memory_(static_cast<std::byte*>(memory)),
      part_bytes_(part_bytes),
      rank_(rank),
      ranks_(ranks),
      write_value_(driver_function<WriteValue>("cuStreamWriteValue32")),
      wait_value_(driver_function<WriteValue>("cuStreamWaitValue32")),
      sent_(static_cast<size_t>(ranks), kGreeting),
      received_(static_cast<size_t>(ranks), kGreeting) {}

std::unique_ptr<PeerMailbox> PeerMailbox::open(void* memory, int64_t part_bytes, int rank,
                                               int ranks, const PeerMemory::Gather& gather,
                                               const Agree& agree) {
  std::unique_ptr<PeerMailbox> mailbox(new PeerMailbox(memory, part_bytes, rank, ranks));
  const int64_t n_bytes = bytes(ranks, part_bytes);
  CUDA_CHECK(cudaMemset(memory, 0, n_bytes));
  // By this the others know that they have found this memory.
  const int64_t head = int64_t{getpid()} << 16 | rank;
  CUDA_CHECK(cudaMemcpy(memory, &head, sizeof head, cudaMemcpyHostToDevice));
  CUDA_CHECK(cudaDeviceSynchronize());
  const Tensor whole = make_tensor(memory, DType::f32, 1, n_bytes / size_of(DType::f32));
  mailbox->peers_ = PeerMemory::open({&whole, 1}, rank, ranks, gather);
  const bool can_signal = mailbox->write_value_ != nullptr && mailbox->wait_value_ != nullptr;
  if (!agree(mailbox->peers_ != nullptr && can_signal)) return nullptr;
  // Where numbers do not get across, nobody is to wait for one.
  if (!agree(mailbox->greet()) || !agree(mailbox->is_greeted())) return nullptr;
  return mailbox;
}

bool PeerMailbox::greet() {
  const auto write = [&](CUdeviceptr number) {
    return write_value_(nullptr, number, kGreeting, CU_STREAM_WRITE_VALUE_DEFAULT) == CUDA_SUCCESS;
  };
  bool written = true;
  for (int r = 0; r < ranks_ && written; ++r) {
    std::byte* memory = memory_of(r);
    written = write(arrived(memory, rank_)) && write(read(memory, rank_));
  }
  const bool done = cudaDeviceSynchronize() == cudaSuccess;
  cudaGetLastError();
  return written && done;
}

bool PeerMailbox::is_greeted() const {
  std::vector<uint32_t> numbers(static_cast<size_t>(2 * ranks_));
  CUDA_CHECK(cudaMemcpy(numbers.data(), memory_ + (ranks_ - 1) * part_bytes_,
                        numbers.size() * sizeof(uint32_t), cudaMemcpyDeviceToHost));
  return numbers == std::vector<uint32_t>(numbers.size(), kGreeting);
}

void PeerMailbox::exchange(std::span<const Parcel> parcels, cudaStream_t stream) {
  ASSERT(std::ssize(parcels) == ranks_);
  for (int i = 1; i < ranks_; ++i) {
    const int to = (rank_ + i) % ranks_;  // not all to rank 0 first
    const auto at = static_cast<size_t>(to);
    const Parcel& parcel = parcels[at];
    ASSERT(parcel.bytes <= part_bytes_);
    std::byte* memory = memory_of(to);
    wait(read(memory_, to), sent_[at], stream);
    if (parcel.bytes > 0) {
      CUDA_CHECK(cudaMemcpyAsync(part(memory, to, rank_), parcel.data, parcel.bytes,
                                 cudaMemcpyDefault, stream));
    }
    write(arrived(memory, rank_), ++sent_[at], stream);
  }
  for (int from = 0; from < ranks_; ++from) {
    if (from != rank_) wait(arrived(memory_, from), ++received_[static_cast<size_t>(from)], stream);
  }
}

void PeerMailbox::empty(cudaStream_t stream) {
  for (int from = 0; from < ranks_; ++from) {
    if (from != rank_)
      write(read(memory_of(from), rank_), received_[static_cast<size_t>(from)], stream);
  }
}

void PeerMailbox::drain(cudaStream_t stream) {
  for (int to = 0; to < ranks_; ++to) {
    if (to != rank_) wait(read(memory_, to), sent_[static_cast<size_t>(to)], stream);
  }
}

CUdeviceptr PeerMailbox::arrived(std::byte* memory, int from) const {
  const std::byte* numbers = memory + (ranks_ - 1) * part_bytes_;
  return reinterpret_cast<CUdeviceptr>(numbers + from * sizeof(uint32_t));
}

CUdeviceptr PeerMailbox::read(std::byte* memory, int by) const {
  return arrived(memory, ranks_ + by);
}

std::byte* PeerMailbox::memory_of(int rank) const {
  return static_cast<std::byte*>(peers_->address(memory_, rank));
}

void PeerMailbox::write(CUdeviceptr number, uint32_t value, cudaStream_t stream) const {
  check_driver(write_value_(stream, number, value, CU_STREAM_WRITE_VALUE_DEFAULT),
               "cuStreamWriteValue32");
}

// At least value.
void PeerMailbox::wait(CUdeviceptr number, uint32_t value, cudaStream_t stream) const {
  check_driver(wait_value_(stream, number, value, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
}

}  // namespace utrain::cuda
