// A test that starts itself again, alone or under mpirun: the started process finds its role in the
// environment.
#pragma once

#include <fmt/format.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>

namespace utrain {

inline std::filesystem::path own_program() {
  return std::filesystem::read_symlink("/proc/self/exe");
}

struct Finished {
  int exit_code = -1;
  std::string output;  // with what it wrote to stderr
};

// role: "NAME=value". before: what the shell shall read in front of the program.
inline Finished start_again(const std::string& before, const std::string& role,
                            const std::string& arguments) {
  const std::string command =
      fmt::format("{} {} '{}' {} 2>&1", role, before, own_program().string(), arguments);
  Finished finished;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return finished;
  std::array<char, 4096> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    finished.output.append(buffer.data(), n);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) finished.exit_code = WEXITSTATUS(status);
  return finished;
}

}  // namespace utrain
