// The command line: what to do, with which input file and overrides. Keys of the overrides are
// checked by read_config. utrain input.toml [--section.key=value ...] [--check [--ranks N] |
// --dry-run N | --dump FILE | --plan [--ranks N] [--json] | --print-config]
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/input_file.h"

namespace utrain {

// A number of ranks that is written for a run elsewhere: decimal, 1 to kMostRanks, nothing else.
inline constexpr int64_t kMostRanks = 100000;
std::optional<int64_t> count_of_ranks(std::string_view text);

struct CommandLine {
  enum class Command { train, check, plan, print_config, help, help_config, version };
  Command command = Command::train;
  std::string input;         // empty for help, help_config and version
  int64_t dry_run = -1;      // steps; -1 = no
  std::string dump;          // file; empty = no
  std::string help_section;  // empty = all
  int64_t ranks = 0;         // of plan and check; 0 = as many as there are
  bool json = false;         // of plan
  std::vector<Override> overrides;
};

// Throws Error(ExitCode::usage), one line per problem.
CommandLine parse_command_line(int argc, const char* const* argv);

// The text of --help.
std::string help_text();

}  // namespace utrain
