// libfake_nccl.so: the calls of NCCL that utrain makes, by way of host memory that processes of one
// node share. Preloaded (LD_PRELOAD) it lets several ranks share a GPU, which NCCL refuses, so that
// cuda/nccl_collectives.cu runs end to end on one GPU. As with NCCL, a call only queues work on its
// stream; the exchange happens there, kDelay late, so that whoever fails to wait for it is caught.
// A message of another size than its receiver expects ends the process.
//   FAKE_NCCL_FAILS=ncclSend       that call fails
//   FAKE_NCCL_OTHER_RANK=1         this rank of MPI has another version of NCCL
#include <fcntl.h>
#include <nccl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr uint64_t kRingBytes = 1 << 16;
constexpr std::chrono::milliseconds kDelay{2};

// Bytes on their way from one rank to another, first in, first out.
struct Channel {
  std::atomic<uint64_t> written, read;
  char ring[kRingBytes];
};

// What all ranks map; it begins as zeros.
struct Shared {
  std::atomic<int> arrived;
  Channel channels[1];  // [size, size] from, to

  static size_t bytes(int size) { return sizeof(Shared) + sizeof(Channel) * size * size; }
};

struct Message {
  bool is_send;
  Channel* channel;
  void* device;
  uint64_t bytes;
  char* staged = nullptr;  // pinned: bytes as a header, then the bytes
  uint64_t moved = 0;

  uint64_t total() const { return sizeof bytes + bytes; }
};

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "fake_nccl: %s\n", what);
  std::abort();
}

void check(cudaError_t status) {
  if (status != cudaSuccess) die(cudaGetErrorString(status));
}

// As much of a message as its channel takes or holds now.
void move(Message& m) {
  Channel& c = *m.channel;
  const uint64_t written = c.written.load(), read = c.read.load();
  const uint64_t at = (m.is_send ? written : read) % kRingBytes;
  const uint64_t room = m.is_send ? kRingBytes - (written - read) : written - read;
  const uint64_t n = std::min({m.total() - m.moved, room, kRingBytes - at});
  if (n == 0) return;
  if (m.is_send) {
    std::memcpy(c.ring + at, m.staged + m.moved, n);
    c.written.store(written + n);
  } else {
    std::memcpy(m.staged + m.moved, c.ring + at, n);
    c.read.store(read + n);
  }
  m.moved += n;
}

}  // namespace

struct ncclComm {
  int rank = 0, size = 1;
  Shared* shared = nullptr;
  std::atomic<bool> aborted{false};
  struct Batch {
    ncclComm* comm;
    std::vector<Message> messages;
  };
  std::vector<std::unique_ptr<Batch>> batches;  // queued; kept to the end
  std::vector<void*> pinned;

  Channel* channel(int from, int to) { return &shared->channels[from * size + to]; }
  char* staging(uint64_t bytes) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, bytes));
    pinned.push_back(memory);
    return static_cast<char*>(memory);
  }
};

namespace {

// Runs in the stream's order, on a thread of CUDA's, which makes no call of CUDA.
void exchange(void* argument) {
  auto& batch = *static_cast<ncclComm::Batch*>(argument);
  std::this_thread::sleep_for(kDelay);
  for (bool left = true; left && !batch.comm->aborted;) {
    left = false;
    std::set<std::pair<bool, Channel*>> busy;  // a later message waits for an earlier one
    for (Message& m : batch.messages) {
      if (m.moved == m.total() || !busy.insert({m.is_send, m.channel}).second) continue;
      move(m);
      left = true;
      uint64_t sent = 0;
      std::memcpy(&sent, m.staged, sizeof sent);
      if (m.moved >= sizeof sent && sent != m.bytes) die("sent and expected sizes differ");
    }
    if (left) sched_yield();
  }
}

// Of this thread, as with NCCL.
thread_local int depth = 0;
thread_local std::vector<Message> group;
thread_local ncclComm* group_comm = nullptr;
thread_local cudaStream_t group_stream = nullptr;

bool fails(const char* call) {
  const char* asked = std::getenv("FAKE_NCCL_FAILS");
  return asked != nullptr && std::strcmp(asked, call) == 0;
}

void queue(ncclComm* comm, cudaStream_t stream, const Message& message) {
  if (message.bytes == 0) return;
  if (group_comm != nullptr && (group_comm != comm || group_stream != stream))
    die("a group has one communicator and one stream");
  group_comm = comm;
  group_stream = stream;
  group.push_back(message);
}

void flush() {
  if (depth > 0 || group.empty()) return;
  ncclComm& comm = *group_comm;
  comm.batches.push_back(std::make_unique<ncclComm::Batch>(ncclComm::Batch{&comm, {}}));
  auto& batch = *comm.batches.back();
  batch.messages.swap(group);
  for (Message& m : batch.messages) {
    m.staged = comm.staging(m.total());
    std::memcpy(m.staged, &m.bytes, sizeof m.bytes);
    if (m.is_send)
      check(cudaMemcpyAsync(m.staged + sizeof m.bytes, m.device, m.bytes, cudaMemcpyDeviceToHost,
                            group_stream));
  }
  check(cudaLaunchHostFunc(group_stream, exchange, &batch));
  for (Message& m : batch.messages) {
    if (!m.is_send)
      check(cudaMemcpyAsync(m.device, m.staged + sizeof m.bytes, m.bytes, cudaMemcpyHostToDevice,
                            group_stream));
  }
  group_comm = nullptr;
}

void send(ncclComm* comm, cudaStream_t stream, const void* from, uint64_t bytes, int to) {
  queue(comm, stream, {true, comm->channel(comm->rank, to), const_cast<void*>(from), bytes});
}
void receive(ncclComm* comm, cudaStream_t stream, void* to, uint64_t bytes, int from) {
  queue(comm, stream, {false, comm->channel(from, comm->rank), to, bytes});
}

// Segments whose ranks have not all arrived end with the process.
struct Segments {
  std::set<std::string> names;
  ~Segments() {
    for (const std::string& name : names) shm_unlink(name.c_str());
  }
} segments;

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  const char *odd = std::getenv("FAKE_NCCL_OTHER_RANK"),
             *rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const bool other = odd != nullptr && rank != nullptr && std::strcmp(odd, rank) == 0;
  *version = other ? NCCL_VERSION_CODE - 100 : NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int count = 0;
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "/fake_nccl_%d_%d", ::getpid(), count++);
  segments.names.insert(id->internal);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
  if (fails("ncclCommInitRank")) return ncclSystemError;
  const int file = shm_open(id.internal, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(Shared::bytes(size))) != 0) die("no memory");
  void* memory = mmap(nullptr, Shared::bytes(size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  if (memory == MAP_FAILED) die("no memory");
  auto* shared = static_cast<Shared*>(memory);
  ++shared->arrived;
  while (shared->arrived < size) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  shm_unlink(id.internal);
  auto made = std::make_unique<ncclComm>();
  made->rank = rank;
  made->size = size;
  made->shared = shared;
  *comm = made.release();
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  for (void* memory : comm->pinned) cudaFreeHost(memory);
  munmap(comm->shared, Shared::bytes(comm->size));
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* state) {
  *state = ncclSuccess;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t) {
  return "fake failure";
}
const char* ncclGetLastError(ncclComm_t) {
  return "asked for\n";
}

ncclResult_t ncclGroupStart() {
  ++depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (depth == 0) return ncclInvalidUsage;
  --depth;
  flush();
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  if (fails("ncclSend") || type != ncclUint8 || peer == comm->rank) return ncclInvalidArgument;
  send(comm, stream, from, count, peer);
  flush();
  return ncclSuccess;
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  if (fails("ncclRecv") || type != ncclUint8 || peer == comm->rank) return ncclInvalidArgument;
  receive(comm, stream, to, count, peer);
  flush();
  return ncclSuccess;
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  if (fails("ncclBroadcast") || type != ncclUint8 || from != to) return ncclInvalidArgument;
  for (int r = 0; r < comm->size; ++r) {
    if (r != root && comm->rank == root) send(comm, stream, from, count, r);
  }
  if (comm->rank != root) receive(comm, stream, to, count, root);
  flush();
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  if (fails("ncclAllGather") || type != ncclUint8) return ncclInvalidArgument;
  char* own = static_cast<char*>(to) + comm->rank * count;
  if (own != from) check(cudaMemcpyAsync(own, from, count, cudaMemcpyDeviceToDevice, stream));
  for (int r = 0; r < comm->size; ++r) {
    if (r == comm->rank) continue;
    send(comm, stream, from, count, r);
    receive(comm, stream, static_cast<char*>(to) + r * count, count, r);
  }
  flush();
  return ncclSuccess;
}

}  // extern "C"
