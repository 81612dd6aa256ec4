// How much memory this machine can still give, in bytes.
#pragma once

#include <cstdint>

namespace utrain {

int64_t available_memory();  // what the kernel calls available, or what is left of the cgroup's
                             // limit if that is less
int64_t peak_memory();       // largest resident set of this process so far

}  // namespace utrain
