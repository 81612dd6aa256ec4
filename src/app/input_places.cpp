#include "app/input_places.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "app/run_directory.h"
#include "core/error.h"

namespace utrain {

namespace fs = std::filesystem;

namespace {

constexpr int kMostLinks = 40;  // as the system follows
constexpr const char* kInputFile = "the input file";

fs::path whole_path(const fs::path& path) {
  std::error_code error;
  const fs::path whole = fs::absolute(path, error);
  return error ? path : whole;
}

fs::path real_path(const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::weakly_canonical(whole_path(path), error);
  return error ? whole_path(path) : real;
}

void add_names_on_the_way(const fs::path& path, std::set<fs::path>& names) {
  const fs::path whole = whole_path(path);
  std::deque<fs::path> left(whole.begin(), whole.end());
  fs::path at = "/";
  for (int n_links = 0; !left.empty() && n_links < kMostLinks;) {
    const fs::path step = left.front();
    left.pop_front();
    if (step.is_absolute()) at = "/";
    if (step == "..") at = at.parent_path();
    if (step.is_absolute() || step.empty() || step == "." || step == "..") continue;
    const fs::path name = at / step;
    names.insert(name);
    std::error_code no_link;
    const fs::path target = fs::read_symlink(name, no_link);
    if (no_link) {
      at = name;
    } else {
      ++n_links;
      left.insert(left.begin(), target.begin(), target.end());
    }
  }
}

InputPlace make_place(const std::string& key, const std::string& path) {
  InputPlace place = {key, path, {}, {}};
  add_names_on_the_way(path, place.names);
  std::error_code error, ignored;
  fs::directory_iterator it(path, error);
  if (error) return place;
  place.real = real_path(path);
  // Models of the hub's cache are directories of links.
  for (; !error && it != fs::directory_iterator(); it.increment(error))
    if (it->is_symlink(ignored)) add_names_on_the_way(it->path(), place.names);
  return place;
}

bool lies_in(const fs::path& path, const fs::path& dir) {
  return !dir.empty() &&
         std::mismatch(dir.begin(), dir.end(), path.begin(), path.end()).first == dir.end();
}

}  // namespace

std::vector<InputPlace> input_places(const Config& config, const std::string& input_file) {
  std::vector<InputPlace> places;
  for (const auto& [key, path] :
       std::vector<std::pair<std::string, std::string>>{{kInputFile, input_file},
                                                        {"model.path", config.model.path},
                                                        {"lora.init_from", config.lora.init_from},
                                                        {"data.train", config.data.train},
                                                        {"data.eval", config.data.eval}})
    if (!path.empty()) places.push_back(make_place(key, path));
  return places;
}

fs::path place_of_name(const std::string& path) {
  const fs::path whole = whole_path(path);
  return real_path(whole.parent_path()) / whole.filename();
}

void check_run_spares(const std::vector<InputPlace>& inputs, const std::string& run_dir,
                      bool dry_run) {
  for (const std::string& name : names_cleared(dry_run)) {
    const std::string path = run_dir + "/" + name;
    // Where these are links, the run writes to where they lead.
    const bool writes_through = name == "checkpoints" || name == "metrics.jsonl";
    for (const InputPlace& input : inputs) {
      // The run it was written by, again: with what it says it is written anew.
      if (name == "input.resolved.toml" && input.key == kInputFile) continue;
      if (!input.names.contains(place_of_name(path)) &&
          !(writes_through && input.names.contains(real_path(path))))
        continue;
      fail(ExitCode::usage, input.key,
           fmt::format("{} would be lost, for the run clears and writes {}", input.path, path),
           input.key == "lora.init_from" ? "to train on from it, name another run.dir"
                                         : "name another run.dir, or move it elsewhere");
    }
  }
}

void check_dump_spares(const std::vector<InputPlace>& inputs, const std::string& file) {
  const fs::path place = place_of_name(file);
  for (const InputPlace& input : inputs) {
    const bool is_in_it = lies_in(place, input.real);
    if (!is_in_it && !input.names.contains(place)) continue;
    fail(ExitCode::usage, "--dump " + file,
         fmt::format("{} {}, {}", is_in_it ? "lies in" : "would replace", input.key, input.path),
         "name another file");
  }
}

}  // namespace utrain
