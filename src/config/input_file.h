// Reads input.toml and the overrides of the command line into a Config, checked against the table
// in keys.cpp. Every problem of both is found in one go: Error(ExitCode::usage), one line each,
// "FILE:LINE:COL: key: ...". Nothing but the input file is opened; of model.path, data.* and
// lora.init_from it is checked that they exist.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"

namespace utrain {

// --section.key=value of the command line; it wins over the file.
struct Override {
  std::string key, value;
};

Config read_config(const std::string& file, const std::vector<Override>& overrides);

// The two halves of read_config: the text of a regular file of at most 64 KiB; `file` is only its
// name in messages.
std::string read_input_file(const std::string& file);
Config parse_config(const std::string& text, const std::string& file,
                    const std::vector<Override>& overrides);

}  // namespace utrain
