// Collectives over NCCL, for tensors in GPU memory: implemented in cuda/nccl_collectives.cu, or by
// the stub cuda/no_nccl.cpp where the build has no NCCL. It stands here, beside the interface, so
// that no room has to include cuda/; Backend is only named, because comm knows core alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/collectives.h"

namespace utrain {

class Backend;

struct NcclOptions {
  int64_t scratch_bytes = int64_t{64} << 20;  // what is under way at a time, at least 256 a rank
  int timeout_s = 600;                        // until all ranks have found each other
};

bool nccl_is_built();
std::string nccl_version();  // "2.28.9", with what it was compiled for if that differs; or "none"

// What the ranks need to find each other, binary: made by one rank, given to all. Usage error where
// NCCL is not built.
std::string nccl_unique_id();

// Collective. Every rank has a GPU of its own; backend is a CUDA one and outlives the result. The
// memory NCCL wants is taken here (reserve_bytes()), none later. Sums keep the order promise of
// collectives.h; no call but the scalar ones and barrier() waits on the host: each is done in the
// order of the backend's calls. A failure of NCCL is Error(internal) with the call and its reason.
std::unique_ptr<Collectives> make_nccl_collectives(const std::string& unique_id, int rank, int size,
                                                   Backend& backend,
                                                   const NcclOptions& options = {});

}  // namespace utrain
