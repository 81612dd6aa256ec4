// Starts MPI, reads the command line, runs the command. The only catch, the only MPI_Abort.
#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <string>
#include <system_error>
#include <vector>

#include "app/commands.h"
#include "app/progress.h"
#include "app/stop.h"

namespace {

using utrain::Error;
using utrain::ExitCode;

// One line for each problem, all with the prefix that tells them from the launcher's. Where nobody
// can be told, the exit code still tells.
void print_error(const std::string& lines) {
  size_t begin = 0;
  while (begin <= lines.size()) {
    const size_t end = std::min(lines.find('\n', begin), lines.size());
    const std::string line = fmt::format("utrain: error: {}\n", lines.substr(begin, end - begin));
    std::fwrite(line.data(), 1, line.size(), stderr);
    begin = end + 1;
  }
  std::fflush(stderr);
}

bool is_first_process() {
  return utrain::World::rank_by_launcher() == 0;
}

// run.hang_timeout where the command line has it, so that MPI's start is watched with it too; what
// is wrong with it is told when the input is read.
int64_t hang_timeout(const utrain::CommandLine& command_line) {
  int64_t seconds = 0;
  for (const utrain::Override& o : command_line.overrides)
    if (o.key == "run.hang_timeout") seconds = std::strtoll(o.value.c_str(), nullptr, 10);
  return std::clamp<int64_t>(seconds, 0, int64_t{1} << 30);
}

// A standard descriptor that the parent closed would become the first file that is opened, and get
// what is printed. Reading meets the end, printing fails, errors reach nobody.
void open_standard_descriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) >= 0) continue;
    open("/dev/null", descriptor == STDERR_FILENO ? O_WRONLY : O_RDONLY);
  }
}

int code_of(ExitCode code) {
  return static_cast<int>(code);
}

// What all ranks know, they leave with together; what only this rank knows must end the others.
// usage: what is wrong with the command line; empty = nothing.
int run(const utrain::CommandLine& command_line, const std::string& usage,
        const std::string& arguments, const utrain::World& world) {
  try {
    world.agree("the command line", arguments);
    if (!usage.empty()) throw utrain::SharedError(ExitCode::usage, usage);
    const ExitCode code = utrain::run_command(command_line, world);
    utrain::check_output();
    return code_of(code);
  } catch (const utrain::SharedError& e) {
    if (world.rank() == 0) print_error(e.what());
    return code_of(e.code());
  } catch (const Error& e) {
    print_error(fmt::format("rank {} on {}: {}", world.rank(), world.host(), e.what()));
    world.abort(code_of(e.code()));
  } catch (const std::system_error& e) {  // standard output on a full disk, for one
    print_error(fmt::format("rank {} on {}: {}; check space, quota and where the output goes",
                            world.rank(), world.host(), e.what()));
    world.abort(code_of(ExitCode::io));
  } catch (const std::exception& e) {
    print_error(
        fmt::format("rank {} on {}: {}; please report this", world.rank(), world.host(), e.what()));
    world.abort(code_of(ExitCode::internal));
  }
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_descriptors();
  utrain::StopSignals signals;
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is a failed write: told, with exit code 74
  try {
    utrain::CommandLine command_line;
    std::string usage;
    try {
      command_line = utrain::parse_command_line(argc, argv);
      if (!utrain::trains(command_line)) signals.give_back();
      if (utrain::is_without_ranks(command_line)) {
        const std::string text = utrain::text_without_ranks(command_line);
        if (is_first_process()) fmt::print("{}", text);
        utrain::check_output();
        return 0;
      }
    } catch (const Error& e) {
      if (e.code() == ExitCode::io) throw;
      signals.give_back();
      usage = e.what();  // told once MPI runs: from one rank, without the launcher's alarm
    }
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const utrain::World world(&argc, &argv, {.hang_timeout = hang_timeout(command_line)});
    return run(command_line, usage, fmt::format("{}", fmt::join(arguments, " ")), world);
  } catch (const Error& e) {  // MPI did not start: every process is alone
    if (is_first_process()) print_error(e.what());
    return code_of(e.code());
  } catch (const std::exception& e) {
    if (is_first_process()) print_error(fmt::format("{}; please report this", e.what()));
    return code_of(ExitCode::internal);
  }
}
