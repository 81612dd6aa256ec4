#include "comm/rank_group.h"

#include <algorithm>
#include <cstdint>

#include "comm/communicator.h"

namespace utrain {

RankGroup::RankGroup(std::shared_ptr<const Communicator> communicator)
    : communicator_(std::move(communicator)) {
  MPI_CHECK(MPI_Comm_rank(comm_of(*this), &rank_));
  MPI_CHECK(MPI_Comm_size(comm_of(*this), &size_));
}

Watchdog& RankGroup::watchdog() const {
  return communicator_->watchdog;
}

std::string RankGroup::broadcast(std::string text, int root) const {
  const Watchdog::InCall call(watchdog(), CallKind::broadcast);
  int64_t n = std::ssize(text);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Ibcast(&n, 1, MPI_INT64_T, root, comm_of(*this), &request));
  wait_for(watchdog(), request);
  text.resize(static_cast<size_t>(n));
  for (int64_t begin = 0; begin < n; begin += kMaxMessageBytes) {
    const auto bytes = static_cast<int>(std::min(n - begin, kMaxMessageBytes));
    MPI_CHECK(MPI_Ibcast(text.data() + begin, bytes, MPI_BYTE, root, comm_of(*this), &request));
    wait_for(watchdog(), request);
  }
  return text;
}

}  // namespace utrain
