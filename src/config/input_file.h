// Reads input.toml and the overrides of the command line into a Config, checked against the table
// in keys.cpp. Every problem of both is found in one go: Error(ExitCode::usage), one line each,
// "FILE:LINE:COL: key: ...". Nothing but the input file is opened; of model.path, data.* and
// lora.init_from it is checked that they exist.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"
#include "config/input_text.h"

namespace utrain {

// --section.key=value of the command line; it wins over the file.
struct Override {
  std::string key, value;
};

Config read_config(const std::string& file, const std::vector<Override>& overrides);

// The half of read_config that does not read (the other: input_text.h); `file` is only the name of
// the input in messages.
Config parse_config(const std::string& text, const std::string& file,
                    const std::vector<Override>& overrides);

}  // namespace utrain
