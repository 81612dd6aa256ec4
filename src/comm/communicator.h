// A communicator of MPI with its owner: ends with it, unless it is MPI_COMM_WORLD. Included by
// src/comm/*.cpp only, as mpi_check.h. What is split from a communicator has its error handler.
// Whoever calls MPI on it so that it waits for other ranks is InCall of its watchdog meanwhile, and
// waits by polling: blocked inside MPI, a rank that waits looks like one that is stuck.
#pragma once

#include <cstdint>
#include <span>

#include "comm/mpi_check.h"
#include "comm/rank_group.h"
#include "comm/watchdog.h"

namespace utrain {

inline constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;  // MPI counts are int

struct RankGroup::Communicator {
  Communicator(MPI_Comm communicator, Watchdog& of_rank) : comm(communicator), watchdog(of_rank) {}
  ~Communicator() {
    if (comm == MPI_COMM_WORLD) return;
    const Watchdog::InCall call(watchdog, CallKind::finalize);
    MPI_Comm ending = comm;
    MPI_Comm_free(&ending);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const MPI_Comm comm;
  Watchdog& watchdog;
};

inline MPI_Comm comm_of(const RankGroup& group) {
  return group.communicator().comm;
}

inline void wait_for(Watchdog& watchdog, std::span<MPI_Request> requests) {
  for (int done = 0;; watchdog.waits()) {
    MPI_CHECK(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                          MPI_STATUSES_IGNORE));
    if (done != 0) return;
  }
}

inline void wait_for(Watchdog& watchdog, MPI_Request request) {
  wait_for(watchdog, std::span(&request, 1));
}

}  // namespace utrain
