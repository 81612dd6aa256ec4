#include "app/prepare.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "app/input_places.h"
#include "app/peak_flops.h"
#include "app/progress.h"
#include "app/run_directory.h"
#include "app/run_numbers.h"
#include "app/strategy_warning.h"
#include "app/version.h"
#include "comm/silent_collectives.h"
#include "io/file.h"
#include "train/choose_layers_held.h"
#include "train/choose_passes.h"
#include "train/choose_recompute.h"

namespace utrain {

namespace {

void check_dump_path(const std::string& path, const std::vector<InputPlace>& inputs) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    fail(ExitCode::usage, "--dump " + path, fmt::format("no directory {}", folder.string()),
         "make it first, or name another file");
  }
  check_dump_spares(inputs, path);
  AtomicFile probe(path);
}

void warn_of_strategy(Prepared& p, int n_nodes) {
  const Machine& m = p.machine;
  const double peak = m.gpus.empty() ? 0.0 : peak_flops(m.gpus.front(), m.backend->dtype());
  const PlanMachine machine = {m.backend->dtype(), m.backend->row_multiple(), m.memory_budget,
                               !m.gpus.empty(),
                               m.node_collectives ? m.node_collectives->size() : 0};
  const std::string warning = strategy_warning(*p.job, machine, n_nodes, kShareOfPeak * peak);
  if (!warning.empty()) p.job->warnings.push_back("parallel.strategy: " + warning);
}

std::string text_of_checkpoints(const Config& config) {
  const std::string folder = checkpoints_folder(config.run.dir);
  const Config::Checkpoint& c = config.checkpoint;
  if (c.every == 0) return fmt::format("none but where the run is stopped, in {}", folder);
  return fmt::format("every {} step{} in {}, the newest {} and the best stay", c.every,
                     c.every == 1 ? "" : "s", folder, c.keep);
}

// Of the run itself, which a check may be made for on fewer; 0: not known. Throws usage.
int64_t ranks_of_run(const CommandLine& command_line, int size) {
  if (command_line.command != CommandLine::Command::check) return size;
  if (command_line.ranks > 0) return command_line.ranks;
  if (size > 1) return size;
  const char* tasks = std::getenv("SLURM_NTASKS");  // 1 is also what srun says of the check
  if (tasks == nullptr || *tasks == 0) return 0;
  const std::optional<int64_t> n = count_of_ranks(tasks);
  if (!n) {
    fail(
        ExitCode::usage, "SLURM_NTASKS",
        fmt::format("found \"{:.80}\", wanted a number of tasks >= 1 and <= {}", tasks, kMostRanks),
        "unset it, or say how many ranks the run has with --ranks");
  }
  return *n > 1 ? *n : 0;
}

void check_resumed(Prepared& p) {
  const Checkpoint& checkpoint = p.resumed->checkpoint;
  // Where the ranks are not known, neither is the batch.
  if (p.facts.ranks_of_run == 0 && p.job->config.train.gradient_accumulation_steps > 0 &&
      checkpoint.ranks() != p.job->ranks) {
    fail(ExitCode::usage, "--check",
         fmt::format("is not told how many ranks the run has, which its global batch follows from "
                     "with train.gradient_accumulation_steps ({} is of {} ranks)",
                     checkpoint.path(), checkpoint.ranks()),
         fmt::format("add --ranks {}, or as many as the run will have", checkpoint.ranks()));
  }
  const std::string changed = check_same_job(*p.resumed, *p.job, *p.machine.backend);
  const int64_t n_elem = p.trainer->model_state().layout().n_elem();
  if (checkpoint.n_elem() != n_elem) {
    fail(ExitCode::usage, checkpoint.path(),
         fmt::format("holds {} elements, {} are trained", checkpoint.n_elem(), n_elem),
         "the model or the adapters have another shape: set checkpoint.resume = \"never\", or go "
         "back to the input that wrote it");
  }
  p.facts.continues =
      text_of_resume(*p.resumed, fingerprint_of(*p.job, p.facts, p.policy), p.facts.ranks_of_run);
  if (!changed.empty()) {
    p.facts.continues =
        fmt::format("step {} of {}; not the same run any more: {} changed, as allowed",
                    checkpoint.step(), checkpoint.path(), changed);
  }
}

// Slices differ by a block, and so may what fits: what any rank computes again, all do.
std::vector<Recompute> most_recompute(const std::vector<Recompute>& own, const World& world) {
  std::vector<int64_t> layers;
  for (const Recompute r : own) layers.push_back(static_cast<int64_t>(r));
  std::vector<Recompute> most;
  for (const int64_t r : world.max(layers)) most.push_back(static_cast<Recompute>(r));
  return most;
}

// What of policy, passes and gathered layers the memory allows, on all ranks alike.
void make_trainer(Prepared& p, const World& world) {
  Backend& backend = *p.machine.backend;
  const Groups groups = p.machine.groups();
  const auto fits = [&](const Arena& arena) { return memory_holds(arena, p.machine); };
  // The least of all ranks' answers.
  const auto agreed = [&](const std::function<int64_t()>& choose) {
    int64_t chosen = 0;
    world.together([&] { chosen = choose(); });
    const std::vector<double> all = world.gather(static_cast<double>(chosen));
    return static_cast<int64_t>(*std::min_element(all.begin(), all.end()));
  };
  world.together([&] { p.policy = choose_recompute(*p.job, backend, groups, p.machine.budget()); });
  p.policy = most_recompute(p.policy, world);
  p.passes_together =
      agreed([&] { return choose_passes(*p.job, backend, groups, p.policy, fits); });
  p.layers_held = agreed([&] {
    if (p.machine.gpus.empty()) return kFewestLayersHeld;
    return choose_layers_held(*p.job, backend, groups, p.policy, p.passes_together, fits);
  });
  world.together([&] {
    if (world.rank() == 0) warn_of_strategy(p, world.n_nodes());
    p.trainer = std::make_unique<Trainer>(*p.job, backend, groups, p.policy, p.passes_together,
                                          p.layers_held);
    check_host_memory(p.trainer->arena(), p.machine);
  });
}

}  // namespace

Config read_shared_config(const CommandLine& command_line, const World& world) {
  std::string text;
  world.first_rank([&] {
    const auto sign = [&] { world.watchdog().progress(); };
    text = read_input_file(command_line.input, kInputPatience, sign);
  });
  text = world.broadcast(text);
  Config config;
  // What it names must be there on every node.
  world.together([&] { config = parse_config(text, command_line.input, command_line.overrides); });
  return config;
}

Prepared prepare(const CommandLine& command_line, const World& world) {
  Prepared p;
  int64_t ranks_known = 0;
  world.together([&] { ranks_known = ranks_of_run(command_line, world.size()); });
  const int ranks = ranks_known > 0 ? static_cast<int>(ranks_known) : world.size();
  world.agree("the build of utrain", build_identity());
  const Config config = read_shared_config(command_line, world);
  world.watchdog().set_timeout(config.run.hang_timeout);
  world.together([&] {
    p.job = std::make_unique<Job>(read_job(config, ranks));
    if (!command_line.dump.empty()) return;
    const bool dry_run = command_line.dry_run > 0;
    check_run_spares(input_places(config, command_line.input), config.run.dir, dry_run);
    check_run_directory(config.run.dir, config.run.overwrite, dry_run);
  });
  // The work before the first byte may be long: whether the file can be made shows now.
  if (!command_line.dump.empty()) {
    world.first_rank(
        [&] { check_dump_path(command_line.dump, input_places(config, command_line.input)); });
  }
  world.agree("config.json of model.path and the adapter of lora.init_from",
              fmt::format("{:016x}", p.job->model_hash));
  world.agree("the contents of data.train and data.eval",
              fmt::format("{:016x} {:016x}", p.job->train.hash, p.job->eval.hash));

  const bool saves = command_line.dump.empty() && command_line.dry_run <= 0;
  if (saves) p.resumed = find_checkpoint(config, world);

  p.machine = open_machine(config, world);
  // Of a check for other ranks than there are: the last of those, as a plan has it.
  if (ranks != world.size()) {
    p.machine.node_collectives.reset();
    p.machine.collectives = std::make_unique<SilentCollectives>(ranks - 1, ranks);
  }
  make_trainer(p, world);
  p.trainer->set_progress([&world] { world.watchdog().progress(); });
  p.facts = {p.machine.description,
             p.machine.backend->dtype(),
             world.size(),
             world.n_nodes(),
             world.hosts(),
             p.machine.gpus,
             p.machine.distinct_gpus,
             p.machine.warnings,
             p.machine.reserve_bytes(),
             p.passes_together,
             p.layers_held,
             ranks_known,
             "",
             ""};
  if (saves) p.facts.checkpoints = text_of_checkpoints(config);
  if (p.resumed) world.first_rank([&] { check_resumed(p); });
  if (world.rank() == 0) {
    fmt::print("{}", start_table(*p.job, p.facts, p.trainer->arena(), p.policy,
                                 p.trainer->model_state().layout()));
    flush_lines();
  }
  return p;
}

}  // namespace utrain
