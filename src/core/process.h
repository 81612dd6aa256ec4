// What the operating system knows of this process: what it moved and took, in bytes, and its age.
#pragma once

#include <cstdint>
#include <string>

namespace utrain {

int64_t bytes_moved();    // that this process has read and written so far, by calls; 0 = unknown
int64_t peak_memory();    // largest resident set of this process so far
std::string cpu_model();  // as the kernel names it; "unknown" where it does not
double seconds_since_exec();  // since the process was started, before MPI and all libraries

// So many bytes_moved() are a sign of progress.
inline constexpr int64_t kBytesOfASign = int64_t{1} << 20;

}  // namespace utrain
