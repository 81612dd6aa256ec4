// Finding the other ranks, NCCL's errors and its version.
#include "nccl_communicator.h"

#include <algorithm>
#include <exception>
#include <future>
#include <thread>

#include "comm/nccl_collectives.h"

namespace utrain {
namespace cuda {
namespace {

std::string last_error() {
  std::string text = ncclGetLastError(nullptr);
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.substr(0, text.find_last_not_of(' ') + 1);
}

[[noreturn]] void fail_nccl(ncclResult_t status, const std::string& detail, const CallSite& site) {
  const std::string_view call = site.call;
  fail(ExitCode::internal, call.substr(0, call.find('(')),
       fmt::format("{}{}{} ({}:{})", ncclGetErrorString(status), detail.empty() ? "" : ": ", detail,
                   site.file, site.line),
       "run again with NCCL_DEBUG=INFO to learn more; see whether another rank, its GPU or the "
       "network was lost");
}

// Where a rank or the network is lost the call may never return: then it is left behind in its
// thread, and the process ends without it.
ncclComm_t connect(const ncclUniqueId& id, int rank, int size, int timeout_s) {
  struct Answer {
    ncclResult_t status;
    ncclComm_t comm;
    std::string detail;
  };
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  std::packaged_task<Answer()> task([=] {
    ncclComm_t comm = nullptr;
    CUDA_CHECK(cudaSetDevice(device));
    const ncclResult_t status = ncclCommInitRank(&comm, size, id, rank);
    return Answer{status, comm, status == ncclSuccess ? "" : last_error()};
  });
  std::future<Answer> future = task.get_future();
  std::thread(std::move(task)).detach();
  if (future.wait_for(std::chrono::seconds(timeout_s)) != std::future_status::ready) {
    fail(ExitCode::internal, "ncclCommInitRank",
         fmt::format("rank {} of {} waited {} s for the others", rank, size, timeout_s),
         "see which rank is missing; NCCL_DEBUG=INFO tells what NCCL does, NCCL_SOCKET_IFNAME "
         "names the network by which ranks find each other");
  }
  const Answer answer = future.get();
  if (answer.status != ncclSuccess)
    fail_nccl(answer.status, answer.detail, {"ncclCommInitRank", __FILE__, __LINE__});
  return answer.comm;
}

// 22809 is 2.28.9
std::string version_text(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

}  // namespace

void check_call(ncclResult_t status, const CallSite& site) {
  if (status != ncclSuccess) fail_nccl(status, last_error(), site);
}

NcclCommunicator::NcclCommunicator(const ncclUniqueId& id, int rank, int size, int timeout_s)
    : comm_(connect(id, rank, size, timeout_s)) {}

// After a failure other ranks may be gone: ncclCommDestroy would wait for them.
NcclCommunicator::~NcclCommunicator() {
  if (failed())
    ncclCommAbort(comm_);
  else
    ncclCommDestroy(comm_);
}

bool NcclCommunicator::failed() const {
  ncclResult_t state = ncclSuccess;
  return ncclCommGetAsyncError(comm_, &state) != ncclSuccess || state != ncclSuccess ||
         std::uncaught_exceptions() > 0;
}

void NcclCommunicator::check() const {
  ncclResult_t state = ncclSuccess;
  NCCL_CHECK(ncclCommGetAsyncError(comm_, &state));
  NCCL_CHECK(state);
}

}  // namespace cuda

bool nccl_is_built() {
  return true;
}

std::string nccl_version() {
  int loaded = 0;
  NCCL_CHECK(ncclGetVersion(&loaded));
  std::string text = cuda::version_text(loaded);
  if (loaded != NCCL_VERSION_CODE)
    text += fmt::format(" (compiled for {})", cuda::version_text(NCCL_VERSION_CODE));
  return text;
}

std::string nccl_unique_id() {
  ncclUniqueId id;
  NCCL_CHECK(ncclGetUniqueId(&id));
  return std::string(id.internal, sizeof id.internal);
}

}  // namespace utrain
