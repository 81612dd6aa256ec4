// Where what a run reads lies: the files and directories that its input names, and the input itself.
// Nothing that a command clears or writes may take one of them away.
#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "config/config.h"

namespace utrain {

struct InputPlace {
  std::string key;   // "model.path", or "the input file"
  std::string path;  // as it is given
  // Every name on the way to it, absolute: with a link also those on the way to where it leads.
  // Without any one of them it is not found under its path, or not whole.
  std::set<std::filesystem::path> names;
  std::filesystem::path real;  // of a directory, else empty
};

// Those that are set.
std::vector<InputPlace> input_places(const Config& config, const std::string& input_file);

// A name in its directory's real place: what is there goes when it is removed or replaced, not what
// it is a link to.
std::filesystem::path place_of_name(const std::string& path);

// Fails with usage where the run would clear or write over one of the inputs in run.dir.
void check_run_spares(const std::vector<InputPlace>& inputs, const std::string& run_dir,
                      bool dry_run);
// Fails with usage where `file` would replace one of the inputs, or lie in one.
void check_dump_spares(const std::vector<InputPlace>& inputs, const std::string& file);

}  // namespace utrain
