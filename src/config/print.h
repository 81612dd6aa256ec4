// What the table of keys has to say: a Config as TOML or as JSON values, and the documentation of
// every key.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/config.h"
#include "config/keys.h"

namespace utrain {

// A commented TOML file that reads back to the same Config. Keys that must stay unset are printed
// as comments.
std::string print_config(const Config& config);

// One section, or all for "". An unknown section is Error(ExitCode::usage) with the nearest one.
std::string help_config(const std::string& section);

// {"section.key", JSON text} in the order of the table; null = unset (max_steps or epochs, ...).
std::vector<std::pair<std::string, std::string>> config_values(const Config& config);

// `"text"` with escapes that JSON and TOML share.
std::string quoted(std::string_view text);

// Shortest digits that read back to the same number, never those of an integer: "16.0".
std::string number_text(double x);

// The value as JSON, which also is its TOML.
std::string value_text(const Key& key, const Config& config);

// What the key may hold: "an integer from 1 to 4096".
std::string wanted(const Key& key);

}  // namespace utrain
