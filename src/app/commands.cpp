#include "app/commands.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <optional>

#include "app/dump.h"
#include "app/machine.h"
#include "app/peak_flops.h"
#include "app/plan_table.h"
#include "app/progress.h"
#include "app/report.h"
#include "app/run_directory.h"
#include "app/save.h"
#include "app/strategy_warning.h"
#include "app/version.h"
#include "config/print.h"
#include "core/process.h"
#include "io/file.h"
#include "train/choose_passes.h"
#include "train/choose_recompute.h"

namespace utrain {

namespace {

using Clock = std::chrono::steady_clock;
using Command = CommandLine::Command;

constexpr int kMostBadSteps = 3;  // in a row

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Prepared {
  std::unique_ptr<Job> job;  // the trainer refers to it
  Machine machine;
  std::vector<Recompute> policy;
  int64_t passes_together = 1;
  std::unique_ptr<Trainer> trainer;
  RunFacts facts;
};

void check_dump_path(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    fail(ExitCode::usage, "--dump " + path, fmt::format("no directory {}", folder.string()),
         "make it first, or name another file");
  }
  AtomicFile probe(path);
}

void warn_of_strategy(Prepared& p, int n_nodes) {
  const Machine& m = p.machine;
  const double peak = m.gpus.empty() ? 0.0 : peak_flops(m.gpus.front(), m.backend->dtype());
  const PlanMachine machine = {m.backend->dtype(), m.backend->row_multiple(), m.memory_budget};
  const std::string warning = strategy_warning(*p.job, machine, n_nodes, kShareOfPeak * peak);
  if (!warning.empty()) p.job->warnings.push_back("parallel.strategy: " + warning);
}

// Everything short of taking the memory: what --check checks.
Prepared prepare(const CommandLine& command_line, const World& world) {
  Prepared p;
  Config config;
  world.agree("the build of utrain", build_identity());
  world.together([&] { config = read_config(command_line.input, command_line.overrides); });
  world.agree("the configuration", print_config(config));
  world.together([&] {
    p.job = std::make_unique<Job>(read_job(config, world.size()));
    if (command_line.dump.empty()) check_run_directory(config.run.dir, config.run.overwrite);
  });
  // The work before the first byte may be long: whether the file can be made shows now.
  if (!command_line.dump.empty()) world.first_rank([&] { check_dump_path(command_line.dump); });
  world.agree("config.json of model.path and the adapter of lora.init_from",
              fmt::format("{:016x}", p.job->model_hash));
  world.agree("the contents of data.train and data.eval",
              fmt::format("{:016x} {:016x}", p.job->train.hash, p.job->eval.hash));

  p.machine = open_machine(config, world);
  Backend& backend = *p.machine.backend;
  const Groups groups = p.machine.groups();
  world.together([&] {
    p.policy = choose_recompute(*p.job, backend, groups, p.machine.memory_budget);
    p.passes_together = choose_passes(*p.job, backend, groups, p.policy, [&](const Arena& arena) {
      return arena.bytes() <= p.machine.memory_budget && host_memory_holds(arena, p.machine);
    });
  });
  const std::vector<double> passes = world.gather(static_cast<double>(p.passes_together));
  p.passes_together = static_cast<int64_t>(*std::min_element(passes.begin(), passes.end()));
  world.together([&] {
    if (world.rank() == 0) warn_of_strategy(p, world.n_nodes());
    p.trainer = std::make_unique<Trainer>(*p.job, backend, groups, p.policy, p.passes_together);
    check_host_memory(p.trainer->arena(), p.machine);
  });
  p.facts = {p.machine.description,   backend.dtype(),    world.size(),
             world.n_nodes(),         world.hosts(),      p.machine.gpus,
             p.machine.distinct_gpus, p.machine.warnings, p.machine.reserve_bytes(),
             p.passes_together};
  if (world.rank() == 0) {
    fmt::print("{}", start_table(*p.job, p.facts, p.trainer->arena(), p.policy,
                                 p.trainer->model_state().layout()));
    std::fflush(stdout);
  }
  return p;
}

// The loop around the step: evaluation, metrics, progress, the end. Rank 0 has the run directory
// and the progress.
class Run {
 public:
  Run(Prepared& prepared, const World& world, int64_t n_steps, bool dry_run)
      : p_(prepared), world_(world), n_steps_(n_steps), dry_run_(dry_run) {
    const Config& c = p_.job->config;
    world_.first_rank([&] { directory_.emplace(c.run.dir, c.run.overwrite, dry_run_); });
    if (world_.rank() == 0) progress_.emplace(n_steps_, c.log.every, c.is_given("log.every"));
  }

  void train() {
    const int64_t every = p_.job->config.eval.every;
    totals_.start_seconds = seconds_since_exec();
    for (int64_t step = 1; step <= n_steps_; ++step) {
      const bool evaluates =
          p_.job->has_eval() && ((every > 0 && step % every == 0) || step == n_steps_);
      for (const StepStats& stats : p_.trainer->train_step(step)) report(stats);
      if (!evaluates && step < n_steps_) continue;
      for (const StepStats& stats : p_.trainer->finish_steps()) report(stats);
      if (evaluates) evaluate(step);
    }
    compare_replicas(world_, n_steps_, p_.trainer->replicas());
    totals_.exposed_seconds = p_.trainer->exposed_seconds();
    if (p_.job->is_full()) return;  // save_model looks at every weight
    parameters_ = p_.trainer->parameters_on_host();
    if (!std::all_of(parameters_.begin(), parameters_.end(),
                     [](float x) { return std::isfinite(x); })) {
      fail_diverged(
          fmt::format("step {}: the adapter holds numbers that are not finite", n_steps_));
    }
  }

  void save() {
    const auto begin = Clock::now();
    if (p_.job->is_full()) {
      const std::string path = world_.broadcast(directory_ ? directory_->model_path() : "");
      const SavedModel saved = save_model(path, p_.job->config.model.path,
                                          p_.machine.backend->dtype(), *p_.trainer, world_);
      if (!saved.not_finite.empty()) {
        fail_diverged(
            fmt::format("step {}: {} of the trained model holds numbers that are not finite",
                        n_steps_, saved.not_finite));
      }
      totals_.output_tensors = saved.n_tensors;
      totals_.output_path = path;
    }
    world_.first_rank([&] {
      if (!p_.job->is_full()) {
        totals_.output_path = directory_->adapter_path();
        totals_.output_tensors = save_adapter(
            totals_.output_path, p_.trainer->model_state().layout(), parameters_, p_.job->config);
      }
      directory_->write_text("input.resolved.toml", print_config(p_.job->config));
    });
    totals_.save_seconds = seconds_since(begin);
  }

  void finish(ExitCode code) {
    totals_.exit_code = static_cast<int>(code);
    totals_.wall_seconds = seconds_since_exec();
    const std::vector<double> peaks = world_.gather(static_cast<double>(peak_memory()));
    totals_.peak_memory = static_cast<int64_t>(*std::max_element(peaks.begin(), peaks.end()));
    world_.first_rank([&] {
      directory_->sync_metrics();
      if (dry_run_) return;
      directory_->write_text("summary.json", summary_json(*p_.job, p_.facts, *p_.trainer, totals_));
    });
  }

  void print_end() {
    if (world_.rank() != 0) return;
    progress_.reset();
    fmt::print("{}", end_summary(*p_.job, p_.facts, *p_.trainer, totals_));
    std::fflush(stdout);
  }

 private:
  void report(const StepStats& stats) {
    count(stats);
    if (directory_) directory_->write_metrics(stats);
    if (progress_) progress_->step(stats);
    if (!stats.replicas.empty()) compare_replicas(world_, stats.step, stats.replicas);
    bad_steps_ = stats.skipped && !stats.overflowed ? bad_steps_ + 1 : 0;
    if (bad_steps_ == kMostBadSteps || (bad_steps_ > 0 && stats.step == n_steps_)) {
      fail_diverged(fmt::format("step {}: loss or gradient norm not finite in {} step{} in a row",
                                stats.step, bad_steps_, bad_steps_ == 1 ? "" : "s"));
    }
  }

  void count(const StepStats& s) {
    if (totals_.steps++ == 0) {
      totals_.first_loss = s.loss;
      totals_.first_step_seconds = totals_.start_seconds + s.seconds;
    }
    totals_.last_loss = s.loss;
    totals_.skipped += s.skipped ? 1 : 0;
    totals_.overflowed += s.overflowed ? 1 : 0;
    totals_.tokens += s.tokens;
    totals_.target_tokens += s.target_tokens;
    totals_.step_seconds += s.seconds;
    totals_.model_flops += s.model_flops;
  }

  void evaluate(int64_t step) {
    const EvalStats stats = p_.trainer->evaluate([&] {
      if (progress_) progress_->busy(fmt::format("step {}: evaluating", step));
    });
    if (totals_.n_evaluations++ == 0) totals_.first_eval_loss = stats.loss;
    totals_.last_eval_loss = stats.loss;
    if (directory_) directory_->write_metrics(step, stats);
    if (progress_) progress_->evaluation(step, stats);
    if (step == n_steps_ && !std::isfinite(stats.loss))
      fail_diverged(fmt::format("step {}: the loss of the evaluation is not finite", step));
  }

  [[noreturn]] void fail_diverged(const std::string& what) {
    totals_.exposed_seconds = p_.trainer->exposed_seconds();
    finish(ExitCode::diverged);
    progress_.reset();
    throw SharedError(ExitCode::diverged,
                      what +
                          "; lower train.lr, raise train.warmup_steps, or look for damaged "
                          "weights and data");
  }

  Prepared& p_;
  const World& world_;
  int64_t n_steps_;
  bool dry_run_;  // nothing is written but metrics
  std::optional<RunDirectory> directory_;
  std::optional<Progress> progress_;
  RunTotals totals_;
  std::vector<float> parameters_;  // after the last step
  int bad_steps_ = 0;              // in a row, up to the last one known
};

void train(const CommandLine& command_line, const World& world) {
  Prepared p = prepare(command_line, world);
  const bool dry = command_line.dry_run > 0;
  const int64_t n_steps =
      dry ? std::min(command_line.dry_run, p.job->total_steps) : p.job->total_steps;
  world.together([&] { p.trainer->load(); });
  p.trainer->loaded();
  Run run(p, world, n_steps, dry);  // last, so that nothing is written where loading fails
  run.train();
  if (!dry) run.save();
  run.finish(ExitCode::done);
  run.print_end();
}

// Ranks need not be those that are planned for: one makes the plan.
void plan(const CommandLine& command_line, const World& world) {
  world.first_rank([&] {
    const Config config = read_config(command_line.input, command_line.overrides);
    const auto ranks = command_line.ranks > 0 ? static_cast<int>(command_line.ranks) : world.size();
    const Plan plan = make_plan(command_line.input, config, ranks);
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

ExitCode run_command(const CommandLine& command_line, const World& world) {
  if (command_line.command == Command::print_config) {
    world.together([&] {
      const Config config = read_config(command_line.input, command_line.overrides);
      if (world.rank() == 0) fmt::print("{}", print_config(config));
    });
  } else if (command_line.command == Command::plan) {
    plan(command_line, world);
  } else if (command_line.command == Command::check) {
    prepare(command_line, world);
    if (world.rank() == 0)
      fmt::print("{}: everything checked, nothing found wrong\n", command_line.input);
  } else if (!command_line.dump.empty()) {
    Prepared p = prepare(command_line, world);
    world.together([&] { p.trainer->load(); });
    p.trainer->loaded();
    write_dump(command_line.dump, *p.job, *p.trainer, world);
  } else {
    train(command_line, world);
  }
  return ExitCode::done;
}

}  // namespace utrain
