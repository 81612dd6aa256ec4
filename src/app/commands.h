// The commands of the program, from a parsed command line to an exit code.
#pragma once

#include "comm/world.h"
#include "config/command_line.h"

namespace utrain {

// --help, --help-config, --version: no MPI, no input file.
bool is_without_ranks(const CommandLine& command_line);
std::string text_without_ranks(const CommandLine& command_line);  // what they print

// Whether a signal asks for a save: the other commands it ends.
bool trains(const CommandLine& command_line);

// Everything else, on all ranks together.
ExitCode run_command(const CommandLine& command_line, const World& world);

}  // namespace utrain
