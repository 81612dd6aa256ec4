// A communicator of NCCL that ends with its owner, and NCCL_CHECK(call): a failure becomes
// Error(internal) with the name of the call and NCCL's reason. Calls on it are blocking in NCCL's
// sense (they return when the work is queued); another thread may abort it.
#pragma once

#include <nccl.h>

#include <chrono>
#include <functional>
#include <future>

#include "comm/quiet_thread.h"
#include "cuda_check.h"

namespace utrain::cuda {

void check_call(ncclResult_t status, const CallSite& site);

class NcclCommunicator {
 public:
  // Collective; on the current GPU. Waits for the other ranks, for ever where one is lost.
  NcclCommunicator(const ncclUniqueId& id, int rank, int size);
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  ncclComm_t get() const { return comm_; }

  // On a stream; what is sent goes on when the other rank receives. Between the two calls of a
  // group they wait for each other in any order.
  void send(const void* data, int64_t bytes, int to, cudaStream_t stream) const;
  void receive(void* data, int64_t bytes, int from, cudaStream_t stream) const;
  // all [ranks * bytes] = what each rank gave; data may stand in its place there.
  void gather(void* all, const void* data, int64_t bytes, cudaStream_t stream) const;
  void broadcast(void* data, int64_t bytes, int root, cudaStream_t stream) const;

  bool failed() const;  // or an exception is on its way: do not wait for the other ranks
  void check() const;   // an error where NCCL found out that something under way has failed

 private:
  ncclComm_t comm_ = nullptr;
};

[[noreturn]] inline void fail_waiting(int rank, int ranks, double seconds) {
  fail(ExitCode::internal, "ncclCommInitRank",
       fmt::format("rank {} of {} waited {:.0f} s for the others", rank, ranks, seconds),
       "see which rank is missing; NCCL_DEBUG=INFO tells what NCCL does, NCCL_SOCKET_IFNAME names "
       "the network by which ranks find each other");
}

// In a thread of its own, whose error is thrown here; false where it is not done in time: then the
// thread is left behind.
inline bool done_within(double seconds, std::function<void()> work) {
  std::packaged_task<void()> task(std::move(work));
  std::future<void> done = task.get_future();
  quiet_thread(std::move(task)).detach();
  if (done.wait_for(std::chrono::duration<double>(seconds)) != std::future_status::ready)
    return false;
  done.get();
  return true;
}

}  // namespace utrain::cuda

#define NCCL_CHECK(call) UTRAIN_CHECK_CALL(call)
