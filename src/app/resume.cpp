#include "app/resume.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "app/run_directory.h"
#include "app/run_numbers.h"
#include "config/keys.h"

namespace utrain {

namespace fs = std::filesystem;

namespace {

// What of the state outlives a step, and its name in state.json.
constexpr std::array<std::pair<StepState, const char*>, 5> kKept = {{
    {StepState::n_updates, "n_updates"},
    {StepState::loss_scale, "loss_scale"},
    {StepState::good_steps, "good_steps"},
    {StepState::hysteresis_left, "hysteresis_left"},
    {StepState::n_overflows, "n_overflows"},
}};

bool is_inside(const std::string& path, const std::string& folder) {
  std::error_code error;
  const fs::path parent = fs::weakly_canonical(path, error).parent_path();
  return !error && parent == fs::weakly_canonical(folder, error) && !error;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Rank 0: what to try, in this order.
std::vector<std::string> candidates(const Config& config) {
  const std::string folder = checkpoints_folder(config.run.dir);
  const std::string& resume = config.checkpoint.resume;
  std::vector<std::string> own;
  if (resume == "never") return own;
  if (!holds_finished_run(config.run.dir))
    for (const CheckpointPlace& place : list_checkpoints(folder)) own.push_back(place.path);
  if (resume == "auto") return own;
  if (!own.empty() && !is_inside(resume, folder)) {
    fail(ExitCode::usage, "checkpoint.resume",
         fmt::format("names {}, but {} holds checkpoints of its own, the newest is {}", resume,
                     config.run.dir, own.front()),
         "set \"auto\" to go on from that one, or name another run.dir");
  }
  return {resume};
}

// Rank 0: those of run.dir that are newer.
std::vector<std::string> newer_ones(const Config& config, int64_t step) {
  std::vector<std::string> newer;
  for (const CheckpointPlace& place : list_checkpoints(checkpoints_folder(config.run.dir)))
    if (place.step > step) newer.push_back(place.path);
  return newer;
}

Resumed open(const std::string& path, const World& world) {
  Resumed resumed = {Checkpoint(path), {}, {}, true, {}, {}};
  resumed.checkpoint.verify(world.rank(), world.size());
  const JsonObjectReader state(resumed.checkpoint.state(), path + "/state.json",
                               ExitCode::no_checkpoint);
  resumed.optimizer = optimizer_from_json(state.object("optimizer"));
  resumed.totals = totals_from_json(state.object("totals"));
  return resumed;
}

// What of the fingerprint depends on how many ranks there are.
constexpr std::array<std::string_view, 4> kOfRanks = {"ranks", "gpus", "recompute",
                                                      "passes_together"};

std::string text_of_ranks(const std::string& n) {
  return fmt::format("{} rank{}", n, n == "1" ? "" : "s");
}

// Where the input says how many passes a step has, and so the batch follows from the ranks.
std::string change_of_batch(const Job& job, const std::string& then, const std::string& path,
                            int then_ranks) {
  const Config::Train& t = job.config.train;
  const int64_t a_rank = t.gradient_accumulation_steps * t.micro_batch_size;
  std::string text = fmt::format(
      "train.gradient_accumulation_steps: {} x train.micro_batch_size {} x {} are {} rows a step, "
      "they were {} in {}; set train.global_batch_size = {} instead",
      t.gradient_accumulation_steps, t.micro_batch_size, text_of_ranks(std::to_string(job.ranks)),
      job.global_batch_size, then, path, then);
  if (then_ranks != job.ranks && std::to_string(a_rank * then_ranks) == then)
    text += fmt::format(", run on {} as before", text_of_ranks(std::to_string(then_ranks)));
  return text;
}

bool is_damage(ExitCode code) {
  return code == ExitCode::no_checkpoint || code == ExitCode::bad_file || code == ExitCode::io;
}

}  // namespace

std::string checkpoints_folder(const std::string& run_dir) {
  return run_dir + "/checkpoints";
}

Json optimizer_to_json(const std::array<double, kStepStates>& state) {
  Json json = Json::object();
  for (const auto& [i, name] : kKept) json.set(name, state[static_cast<size_t>(i)]);
  return json;
}

std::array<double, kStepStates> optimizer_from_json(const JsonObjectReader& json) {
  std::array<double, kStepStates> state = {};
  for (const auto& [i, name] : kKept) state[static_cast<size_t>(i)] = json.number(name);
  return state;
}

std::optional<Resumed> find_checkpoint(const Config& config, const World& world) {
  std::string list;
  world.first_rank([&] {
    for (const std::string& path : candidates(config)) list += path + "\n";
  });
  const std::vector<std::string> paths = lines_of(world.broadcast(list));
  const bool is_named = config.checkpoint.resume != "auto";
  std::vector<std::string> damaged;
  const auto warn = [&](const std::string& what, const char* then) {
    if (world.rank() == 0) utrain::warn(what + then);
  };
  for (const std::string& path : paths) {
    std::optional<Resumed> resumed;
    try {
      world.together([&] { resumed.emplace(open(path, world)); });
    } catch (const SharedError& error) {
      if (is_named || !is_damage(error.code())) throw;
      damaged.push_back(path);
      warn(error.what(), path == paths.back() ? "" : "; the checkpoint before it is tried");
      continue;
    }
    world.first_rank([&] {
      resumed->of_this_run = is_inside(path, checkpoints_folder(config.run.dir));
      if (!resumed->of_this_run) return;
      for (const std::string& newer : newer_ones(config, resumed->checkpoint.step())) {
        const bool is_told = std::find(damaged.begin(), damaged.end(), newer) != damaged.end();
        (is_told ? resumed->damaged : resumed->unused).push_back(newer);
      }
    });
    return resumed;
  }
  if (!damaged.empty()) {
    throw SharedError(
        ExitCode::no_checkpoint,
        fmt::format("{}: no checkpoint in it is good; restore one from elsewhere, or set "
                    "checkpoint.resume = \"never\" to start again at step 1",
                    checkpoints_folder(config.run.dir)));
  }
  return std::nullopt;
}

std::string check_same_job(const Resumed& resumed, const Job& job, const Backend& backend) {
  const std::string& path = resumed.checkpoint.path();
  const JsonObjectReader state(resumed.checkpoint.state(), path + "/state.json",
                               ExitCode::no_checkpoint);
  const auto& allowed = job.config.checkpoint.allow_changes;
  const Names names = std::get<Names>(find_key("checkpoint.allow_changes")->kind);
  std::string lines, changed;
  for (const auto& [key, then, now] :
       changed_numbers(state.at("numbers"), numbers_of(job, backend))) {
    if (std::find(allowed.begin(), allowed.end(), key) != allowed.end()) {
      changed += (changed.empty() ? "" : ", ") + key;
      continue;
    }
    const bool may =
        std::find(names.allowed.begin(), names.allowed.end(), key) != names.allowed.end();
    const bool by_ranks =
        key == "train.global_batch_size" && job.config.train.gradient_accumulation_steps > 0;
    lines += fmt::format(
        "{}{}{}, or start again with checkpoint.resume = \"never\"", lines.empty() ? "" : "\n",
        by_ranks ? change_of_batch(job, then, path, resumed.checkpoint.ranks())
                 : fmt::format("{}: was {} in {}, is {} now; set it back", key, then, path, now),
        may ? fmt::format(", allow it with checkpoint.allow_changes = [\"{}\"]", key) : "");
  }
  if (!lines.empty()) throw Error(ExitCode::usage, lines);
  if (resumed.checkpoint.step() > job.total_steps) {
    fail(ExitCode::usage, "train.max_steps",
         fmt::format("{} of them, {} is already at step {}", job.total_steps, path,
                     resumed.checkpoint.step()),
         "raise it");
  }
  return changed;
}

std::string text_of_resume(const Resumed& resumed, const Json& fingerprint, int64_t ranks) {
  std::string text =
      fmt::format("step {} of {}", resumed.checkpoint.step(), resumed.checkpoint.path());
  const Json* then = resumed.checkpoint.state().find("fingerprint");
  if (then == nullptr) return text;
  Json now = fingerprint;
  const Json* then_ranks = then->is_object() ? then->find("ranks") : nullptr;
  const bool is_of_other_ranks = fingerprint.find("ranks")->as_int64() != ranks;
  if (is_of_other_ranks) {
    // What follows from the number of ranks is not known either.
    now = Json::object();
    for (const auto& [key, value] : fingerprint.as_object())
      if (std::ranges::count(kOfRanks, key) == 0) now.set(key, value);
    if (ranks > 0) now.set("ranks", ranks);
  }
  std::string others;
  for (const auto& [key, was, is] : changed_numbers(*then, now))
    others += fmt::format("{}{}", others.empty() ? "" : ", ",
                          key == "ranks"   ? fmt::format("{}, now {}", text_of_ranks(was), is)
                          : key == "build" ? std::string("another build")
                                           : key);
  if (!others.empty())
    text += fmt::format("; equal to rounding, not to the bit: {} changed", others);
  else if (is_of_other_ranks && then_ranks != nullptr)
    text += fmt::format(
        "; equal to the bit on {} and machines like those that wrote it, else to rounding",
        text_of_ranks(to_text(*then_ranks)));
  return text;
}

}  // namespace utrain
