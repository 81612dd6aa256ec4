// Host memory that this process may still take, as the kernel and the limits of its control groups
// (containers, Slurm jobs) have it. Pages of files that the kernel may drop at any time are free.
#pragma once

#include <cstdint>
#include <string>

namespace utrain {

// In bytes, of all processes of the node or of the group together. root: in whose place stand
// /proc and /sys.
int64_t available_memory(const std::string& root = "");

}  // namespace utrain
