// The text of the input file: a regular file, or what a pipe or a device gives until its end, as
// /dev/stdin and the shell's <(...) do. Such a one can be read once, so one rank reads it for all.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace utrain {

inline constexpr size_t kMaxInputBytes = 64 * 1024;

// Fails with usage; so it does where nothing comes for as long as patience.
std::string read_input_file(const std::string& file,
                            std::chrono::milliseconds patience = std::chrono::seconds(60));

}  // namespace utrain
