// The text of the input file: a regular file, or what a pipe or a device gives until its end, as
// /dev/stdin and the shell's <(...) do. Such a one can be read once, so one rank reads it for all.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>

namespace utrain {

inline constexpr size_t kMaxInputBytes = 64 * 1024;
inline constexpr std::chrono::seconds kInputPatience{60};

// Fails with usage; so it does where nothing comes for as long as patience. waits: called every
// second or so meanwhile.
std::string read_input_file(
    const std::string& file, std::chrono::milliseconds patience = kInputPatience,
    const std::function<void()>& waits = [] {});

}  // namespace utrain
