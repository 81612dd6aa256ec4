// Finding the other ranks, NCCL's errors and its version.
#include "nccl_communicator.h"

#include <algorithm>
#include <exception>

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

// 22809 is 2.28.9
std::string version_text(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

}  // namespace

void check_call(ncclResult_t status, const CallSite& site) {
  if (status != ncclSuccess) fail_nccl(status, last_error(), site);
}

NcclCommunicator::NcclCommunicator(const ncclUniqueId& id, int rank, int size) {
  NCCL_CHECK(ncclCommInitRank(&comm_, size, id, rank));
}

// After a failure other ranks may be gone: ncclCommDestroy would wait for them.
NcclCommunicator::~NcclCommunicator() {
  if (failed())
    ncclCommAbort(comm_);
  else
    ncclCommDestroy(comm_);
}

void NcclCommunicator::send(const void* data, int64_t bytes, int to, cudaStream_t stream) const {
  if (bytes > 0) NCCL_CHECK(ncclSend(data, bytes, ncclUint8, to, comm_, stream));
}

void NcclCommunicator::receive(void* data, int64_t bytes, int from, cudaStream_t stream) const {
  if (bytes > 0) NCCL_CHECK(ncclRecv(data, bytes, ncclUint8, from, comm_, stream));
}

void NcclCommunicator::gather(void* all, const void* data, int64_t bytes,
                              cudaStream_t stream) const {
  NCCL_CHECK(ncclAllGather(data, all, bytes, ncclUint8, comm_, stream));
}

void NcclCommunicator::broadcast(void* data, int64_t bytes, int root, cudaStream_t stream) const {
  NCCL_CHECK(ncclBroadcast(data, data, bytes, ncclUint8, root, comm_, stream));
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
