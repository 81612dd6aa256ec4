#include "app/run.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "app/run_numbers.h"
#include "app/save.h"
#include "config/print.h"
#include "core/finite.h"
#include "core/process.h"
#include "parallel/replicas.h"

namespace utrain {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostBadSteps = 3;  // in a row

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

RunStart start_of(const Prepared& p, bool dry_run) {
  const Config& c = p.job->config;
  RunStart start;
  start.dry_run = dry_run;
  start.clears_checkpoints =
      c.checkpoint.resume == "never" || (c.run.overwrite && holds_finished_run(c.run.dir));
  if (!p.resumed || !p.resumed->of_this_run) return start;
  start.after_step = p.resumed->checkpoint.step();
  start.unused = p.resumed->unused;
  start.damaged = p.resumed->damaged;
  return start;
}

}  // namespace

Run::Run(Prepared& prepared, const World& world, int64_t n_steps, bool dry_run, StopRequest& stop)
    : p_(prepared), world_(world), stop_(stop), n_steps_(n_steps), dry_run_(dry_run) {
  const Config& c = p_.job->config;
  world_.first_rank([&] {
    directory_.emplace(c.run.dir, c.run.overwrite, start_of(p_, dry_run_),
                       [&](const auto&) { world_.watchdog().progress(); });
    if (!dry_run_) directory_->write_text("input.resolved.toml", print_config(c));
    stop_.look_into(c.run.dir);
  });
  world_.watch_in(c.run.dir);
  stop_.limit_time(c.run.max_hours);
  if (p_.resumed) {
    first_step_ = p_.resumed->checkpoint.step() + 1;
    totals_ = p_.resumed->totals;
    ++totals_.restarts;
    totals_.last_checkpoint = p_.resumed->checkpoint.path();
  }
  checkpoints_.emplace(*p_.job, *p_.trainer, world_, directory_ ? &*directory_ : nullptr, [this] {
    Json identity = Json::object();
    identity.set("numbers", numbers_of(*p_.job, *p_.machine.backend));
    identity.set("fingerprint", fingerprint_of(*p_.job, p_.facts, p_.policy));
    return identity;
  });
  if (world_.rank() == 0)
    progress_.emplace(n_steps_, c.log.every, c.is_given("log.every"), first_step_);
}

bool Run::train() {
  totals_.start_seconds = seconds_since_exec();
  for (int64_t step = first_step_; step <= n_steps_; ++step) {
    world_.watchdog().enter(RunPhase::step, step);
    if (const std::string reason = checkpoints_->agree(stop_.reason()); !reason.empty()) {
      stop_after(step - 1, reason);
      return false;
    }
    report(p_.trainer->train_step(step));
    if (evaluates(step) || step == n_steps_) report(p_.trainer->finish_steps());
    if (evaluates(step)) evaluate(step);
    if (is_due(step)) capture(step);
  }
  compare(n_steps_, p_.trainer->replicas());
  checkpoints_->finish();
  totals_.exposed_seconds = p_.trainer->exposed_seconds();
  if (p_.job->is_full()) return true;  // save_model looks at every weight
  parameters_ = p_.trainer->parameters_on_host();
  if (!are_finite(parameters_)) {
    fail_diverged(fmt::format("step {}: the adapter holds numbers that are not finite", n_steps_));
  }
  return true;
}

void Run::save() {
  const auto begin = Clock::now();
  world_.watchdog().enter(RunPhase::save, n_steps_);
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
      totals_.output_tensors =
          save_adapter(totals_.output_path, p_.trainer->model_state().layout(), parameters_,
                       p_.job->config, [&](const auto&) { world_.watchdog().progress(); });
    }
  });
  totals_.save_seconds = seconds_since(begin);
}

void Run::sum_up(ExitCode code) {
  world_.watchdog().enter(RunPhase::end, totals_.steps);
  totals_.exit_code = static_cast<int>(code);
  totals_.wall_seconds = seconds_since_exec();
  totals_.n_checkpoints += checkpoints_->n_written();
  totals_.stall_seconds = checkpoints_->stall_seconds();
  totals_.longest_stall_seconds = checkpoints_->longest_stall_seconds();
  if (checkpoints_->n_written() > 0) totals_.last_checkpoint = checkpoints_->last_path();
  const std::vector<double> peaks = world_.gather(static_cast<double>(peak_memory()));
  totals_.peak_memory = static_cast<int64_t>(*std::max_element(peaks.begin(), peaks.end()));
}

void Run::write_summary(ExitCode code) {
  totals_.exit_code = static_cast<int>(code);
  world_.first_rank([&] {
    directory_->sync_metrics();
    if (dry_run_) return;
    directory_->write_text("summary.json", summary_json(*p_.job, p_.facts, *p_.trainer, totals_));
  });
}

ExitCode Run::finish(ExitCode code) {
  sum_up(code);
  try {
    world_.first_rank([&] {
      progress_.reset();
      fmt::print("{}{}", end_summary(*p_.job, p_.facts, *p_.trainer, totals_), how_it_stopped_);
      flush_lines();
      check_output();
    });
  } catch (const SharedError& lost) {  // before the summary, so that it has the code of the process
    write_summary(lost.code());
    throw;
  }
  write_summary(code);
  return code;
}

bool Run::evaluates(int64_t step) const {
  const int64_t every = p_.job->config.eval.every;
  return p_.job->has_eval() && ((every > 0 && step % every == 0) || step == n_steps_);
}

bool Run::is_due(int64_t step) const {
  const int64_t every = p_.job->config.checkpoint.every;
  return !dry_run_ && every > 0 && step % every == 0;
}

void Run::capture(int64_t step) {
  if (checkpoints_->is_under_way()) {
    report(p_.trainer->finish_steps());
    const auto begin = Clock::now();
    const double between = std::chrono::duration<double>(begin - captured_at_).count();
    checkpoints_->finish_between_steps();
    const double waited = seconds_since(begin);
    if (world_.rank() == 0 && !has_warned_of_saving_ && is_long_wait(waited, between)) {
      has_warned_of_saving_ = true;
      warn(
          fmt::format("step {}: waited {:.1f} s for the checkpoint before it, after steps of "
                      "{:.1f} s; raise checkpoint.every (said once)",
                      step, waited, between));
    }
  }
  std::optional<double> eval_loss;
  if (evaluated_step_ == step && std::isfinite(totals_.last_eval_loss))
    eval_loss = totals_.last_eval_loss;
  checkpoints_->capture(step, eval_loss);
  captured_at_ = Clock::now();
}

void Run::stop_after(int64_t step, const std::string& reason) {
  report(p_.trainer->finish_steps());
  checkpoints_->finish();
  const bool has_steps = step >= first_step_;
  if (!dry_run_ && has_steps && checkpoints_->last_step() != step) {
    world_.watchdog().enter(RunPhase::save, step);
    capture(step);
    checkpoints_->finish();
  }
  totals_.exposed_seconds = p_.trainer->exposed_seconds();
  const bool has_own = !checkpoints_->last_path().empty();
  const std::string& path = has_own ? checkpoints_->last_path() : totals_.last_checkpoint;
  const bool by_itself = !has_own || p_.job->config.checkpoint.resume == "auto";
  how_it_stopped_ = fmt::format(
      "utrain stopped after step {} of {}: {}; {}\n", step, n_steps_, reason,
      dry_run_       ? std::string("nothing is saved of a dry run")
      : path.empty() ? std::string("nothing was there to be saved: start it again")
                     : fmt::format("start it again{} to go on from {}",
                                   by_itself ? "" : " with --checkpoint.resume=auto", path));
}

void Run::report(const std::vector<StepStats>& steps) {
  for (const StepStats& stats : steps) report(stats);
}

void Run::report(const StepStats& stats) {
  count(stats);
  world_.watchdog().step_took(stats.seconds);
  if (directory_) directory_->write_metrics(stats);
  if (progress_) progress_->step(stats);
  if (!stats.replicas.empty()) compare(stats.step, stats.replicas);
  bad_steps_ = stats.skipped && !stats.overflowed ? bad_steps_ + 1 : 0;
  if (bad_steps_ == kMostBadSteps || (bad_steps_ > 0 && stats.step == n_steps_)) {
    fail_diverged(fmt::format("step {}: loss or gradient norm not finite in {} step{} in a row",
                              stats.step, bad_steps_, bad_steps_ == 1 ? "" : "s"));
  }
  checkpoints_->know(stats.step, totals_);
}

void Run::count(const StepStats& s) {
  if (totals_.steps++ == 0) totals_.first_loss = s.loss;
  if (s.step == first_step_) totals_.first_step_seconds = totals_.start_seconds + s.seconds;
  totals_.last_loss = s.loss;
  totals_.skipped += s.skipped ? 1 : 0;
  totals_.overflowed += s.overflowed ? 1 : 0;
  totals_.tokens += s.tokens;
  totals_.target_tokens += s.target_tokens;
  totals_.step_seconds += s.seconds;
  totals_.own_step_seconds += s.seconds;
  totals_.model_flops += s.model_flops;
}

void Run::evaluate(int64_t step) {
  world_.watchdog().enter(RunPhase::evaluate, step);
  const EvalStats stats = p_.trainer->evaluate([&] {
    if (progress_) progress_->busy(fmt::format("step {}: evaluating", step));
  });
  if (totals_.n_evaluations++ == 0) totals_.first_eval_loss = stats.loss;
  totals_.last_eval_loss = stats.loss;
  evaluated_step_ = step;
  if (directory_) directory_->write_metrics(step, stats);
  if (progress_) progress_->evaluation(step, stats);
  if (step == n_steps_ && !std::isfinite(stats.loss))
    fail_diverged(fmt::format("step {}: the loss of the evaluation is not finite", step));
  checkpoints_->know(step, totals_);
}

void Run::fail_diverged(const std::string& what) {
  // What is under way is of an earlier step, and good.
  checkpoints_->finish_or_drop();
  end_failing(ExitCode::diverged,
              what +
                  "; lower train.lr, raise train.warmup_steps, or look for damaged weights and "
                  "data");
}

void Run::compare(int64_t step, const std::string& replicas) {
  const std::string line = find_differences(world_, step, replicas);
  if (line.empty()) return;
  checkpoints_->drop();  // it may hold what is wrong
  end_failing(ExitCode::disagree, line);
}

void Run::end_failing(ExitCode code, const std::string& line) {
  totals_.exposed_seconds = p_.trainer->exposed_seconds();
  sum_up(code);
  write_summary(code);
  progress_.reset();
  throw SharedError(code, line);
}

}  // namespace utrain
