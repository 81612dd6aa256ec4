// Errors a user can act on: every one says where, what was found, and what to do.
// Thrown anywhere, caught in main alone; the code is what the process exits with on every rank.
#pragma once

#include <fmt/core.h>

#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace utrain {

enum class ExitCode : int {
  done = 0,
  usage = 2,          // command line, input.toml, missing path, not available, does not fit
  bad_file = 3,       // an existing file that is unreadable, malformed, inconsistent or unsupported
  diverged = 4,       // three steps in a row with non-finite numbers
  no_checkpoint = 5,  // a named checkpoint is missing, or all are damaged
  internal = 70,      // hang, CUDA, NCCL or a mistake of ours
  disagree = 71,      // ranks or builds differ
  io = 74,            // a write or read failed on the way
  stopped = 75,       // stopped early, checkpoint saved
};

// what() is "WHERE: WHAT; WHAT TO DO", one line for each problem.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& lines) : std::runtime_error(lines), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// With control characters escaped: a terminal would obey them, and a newline in the name of a file
// would make two messages of one.
inline std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f)
      line += fmt::format("\\x{:02x}", byte);
    else
      line += c;
  }
  return line;
}

[[noreturn]] inline void fail(ExitCode code, std::string_view where, std::string_view what,
                              std::string_view remedy) {
  throw Error(code, one_line(fmt::format("{}: {}; {}", where, what, remedy)));
}

// A line on stderr, from one rank. Where it reaches nobody the run goes on.
inline void warn(std::string_view text) {
  const std::string line = fmt::format("utrain: warning: {}\n", one_line(text));
  std::fwrite(line.data(), 1, line.size(), stderr);
}

[[noreturn]] inline void fail_assert(const char* file, int line, const char* condition) {
  fail(ExitCode::internal, fmt::format("{}:{}", file, line),
       fmt::format("internal check failed: {}", condition),
       "this is a fault of utrain: please report it with the input that led here");
}

}  // namespace utrain

// For our own mistakes, never for user input. Always on: it guards sizes, not inner loops.
#define ASSERT(condition) \
  ((condition) ? (void)0 : ::utrain::fail_assert(__FILE__, __LINE__, #condition))
