// What the table of keys has to say: a Config as TOML or as JSON values, and the documentation of
// every key.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "config/config.h"

namespace utrain {

// A commented TOML file that reads back to the same Config. Keys that must stay unset are printed
// as comments.
std::string print_config(const Config& config);

// One section, or all for "". An unknown section is Error(ExitCode::usage) with the nearest one.
std::string help_config(const std::string& section);

// {"section.key", JSON text} in the order of the table; null = unset (max_steps or epochs, ...).
std::vector<std::pair<std::string, std::string>> config_values(const Config& config);

}  // namespace utrain
