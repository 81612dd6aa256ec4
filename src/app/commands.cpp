#include "app/commands.h"

#include <fmt/core.h>

#include <algorithm>

#include "app/dump.h"
#include "app/plan_table.h"
#include "app/prepare.h"
#include "app/run.h"
#include "app/version.h"
#include "config/print.h"

namespace utrain {

namespace {

using Command = CommandLine::Command;

ExitCode train(const CommandLine& command_line, const World& world) {
  StopRequest stop;
  Prepared p = prepare(command_line, world);
  const bool dry = command_line.dry_run > 0;
  const int64_t n_steps =
      dry ? std::min(command_line.dry_run, p.job->total_steps) : p.job->total_steps;
  world.watchdog().enter(RunPhase::load);
  world.together([&] {
    p.trainer->load();
    if (p.resumed) p.trainer->restore(p.resumed->checkpoint, p.resumed->optimizer);
  });
  p.trainer->loaded();
  Run run(p, world, n_steps, dry, stop);  // last, so that nothing is written where loading fails
  if (!run.train()) return run.finish(ExitCode::stopped);
  if (!dry) run.save();
  return run.finish(ExitCode::done);
}

// Ranks need not be those that are planned for: one makes the plan.
void plan(const CommandLine& command_line, const World& world) {
  world.first_rank([&] {
    const Config config = read_config(command_line.input, command_line.overrides);
    const auto ranks = command_line.ranks > 0 ? static_cast<int>(command_line.ranks) : world.size();
    const int on_node =
        std::min(ranks, command_line.ranks > 0 ? (ranks + world.n_nodes() - 1) / world.n_nodes()
                                               : world.local_size());
    const Plan plan = make_plan(command_line.input, config, ranks, on_node, ranks <= world.size());
    fmt::print("{}", command_line.json ? plan_json(plan) : plan_table(plan));
  });
}

}  // namespace

bool is_without_ranks(const CommandLine& command_line) {
  const Command command = command_line.command;
  return command == Command::help || command == Command::help_config || command == Command::version;
}

std::string text_without_ranks(const CommandLine& command_line) {
  switch (command_line.command) {
    case Command::help: return help_text();
    case Command::help_config: return help_config(command_line.help_section);
    default: return version_text();
  }
}

bool trains(const CommandLine& command_line) {
  return command_line.command == Command::train && command_line.dump.empty();
}

ExitCode run_command(const CommandLine& command_line, const World& world) {
  if (command_line.command == Command::print_config) {
    const Config config = read_shared_config(command_line, world);
    world.first_rank([&] { fmt::print("{}", print_config(config)); });
  } else if (command_line.command == Command::plan) {
    plan(command_line, world);
  } else if (command_line.command == Command::check) {
    const Prepared p = prepare(command_line, world);
    const int n = p.job->ranks;
    const std::string ranks =
        n == world.size() ? "" : fmt::format(" for {} rank{}", n, n == 1 ? "" : "s");
    if (world.rank() == 0)
      fmt::print("{}: everything checked{}, nothing found wrong\n", one_line(command_line.input),
                 ranks);
  } else if (!command_line.dump.empty()) {
    Prepared p = prepare(command_line, world);
    world.watchdog().enter(RunPhase::load);
    world.together([&] { p.trainer->load(); });
    p.trainer->loaded();
    write_dump(command_line.dump, *p.job, *p.trainer, world);
  } else {
    return train(command_line, world);
  }
  return ExitCode::done;
}

}  // namespace utrain
