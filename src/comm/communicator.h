// A communicator of MPI with its owner: ends with it, unless it is MPI_COMM_WORLD. Included by
// src/comm/*.cpp only, as mpi_check.h. What is split from a communicator has its error handler.
#pragma once

#include "comm/mpi_check.h"
#include "comm/rank_group.h"

namespace utrain {

struct RankGroup::Communicator {
  explicit Communicator(MPI_Comm communicator) : comm(communicator) {}
  ~Communicator() {
    if (comm == MPI_COMM_WORLD) return;
    MPI_Comm ending = comm;
    MPI_Comm_free(&ending);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const MPI_Comm comm;
};

inline MPI_Comm comm_of(const RankGroup& group) {
  return group.communicator().comm;
}

}  // namespace utrain
