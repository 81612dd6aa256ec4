// Collectives over NCCL, for tensors in GPU memory: implemented in cuda/nccl_collectives.cu, or by
// the stub cuda/no_nccl.cpp where the build has no NCCL. It stands here, beside the interface, so
// that no room has to include cuda/; Backend is only named, because comm knows core alone.
//   Where all ranks are on one node and their GPUs reach each other's memory, copy engines send
// instead of NCCL's kernels (cuda/peer_mailbox.h).
//   Kernels of two communicators that run beside each other may each wait for what another rank has
// given to the other one. So collectives of a second group of ranks take the stream of the first
// (NcclOptions::beside): the calls of a rank are then done one after another, in the order in which
// all ranks make them, and the first call that is not done has nothing before it on any rank.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/collectives.h"

namespace utrain {

class Backend;
class RankGroup;
class Watchdog;
class World;

struct NcclOptions {
  int64_t scratch_bytes = int64_t{64} << 20;  // what is under way at a time, at least 256 a rank
  int timeout_s = 600;                        // until all ranks are connected
  // Collectives over NCCL of the same backend, whose stream these share; either may go first.
  const Collectives* beside = nullptr;
  bool copy_engines = true;  // where they can; else NCCL moves all
  // Is told of the calls, and aborts NCCL at a hang; World's where collectives are opened in one step.
  Watchdog* watchdog = nullptr;
};

bool nccl_is_built();
std::string nccl_version();  // "2.28.9", with what it was compiled for if that differs; or "none"

// What the ranks need to find each other, binary: made by one rank, given to all. Usage error where
// NCCL is not built.
std::string nccl_unique_id();

// Of all ranks, or of the group that a rank is in; each rank is in one. Collective over all ranks,
// which leave alike. Every rank has a GPU of its own; backend is a CUDA one and outlives the result.
// The memory NCCL wants is taken here (reserve_bytes()), none later. Sums keep the order promise of
// collectives.h; no call but the scalar ones and barrier() waits on the host: each is done in the
// order of the backend's calls. A failure of NCCL is Error(internal) with the call and its reason.
std::unique_ptr<Collectives> open_nccl_collectives(const World& world, Backend& backend,
                                                   const NcclOptions& options = {});
std::unique_ptr<Collectives> open_nccl_collectives(const World& world, const RankGroup& group,
                                                   Backend& backend,
                                                   const NcclOptions& options = {});

// Its two steps. First what a rank has alone, its scratch memory and streams: no call may be made
// on these.
std::unique_ptr<Collectives> prepare_nccl_collectives(int rank, int size, Backend& backend,
                                                      const NcclOptions& options = {});
// Then, on all ranks, what was prepared and is now connected. An error where that takes longer than
// timeout_s.
std::unique_ptr<Collectives> connect_nccl_collectives(std::unique_ptr<Collectives> prepared,
                                                      const std::string& unique_id);

}  // namespace utrain
