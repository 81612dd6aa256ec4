#include "app/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "app/peak_flops.h"
#include "app/progress.h"
#include "app/version.h"
#include "config/print.h"
#include "core/memory_budget.h"
#include "io/json.h"

namespace utrain {

namespace {

std::string text_of_parameters(int64_t n) {
  const auto d = static_cast<double>(n);
  return d >= 1e9 ? fmt::format("{:.2f} B", d * 1e-9) : fmt::format("{:.2f} M", d * 1e-6);
}

std::string text_of_policy(const std::vector<Recompute>& policy) {
  const auto count = [&](Recompute r) { return std::count(policy.begin(), policy.end(), r); };
  std::string text;
  const auto add = [&](Recompute r, const char* what) {
    if (count(r) > 0)
      text += fmt::format("{}{} of {} layers {}", text.empty() ? "" : ", ", count(r), policy.size(),
                          what);
  };
  add(Recompute::keep, "keep all");
  add(Recompute::mlp, "compute the MLP again");
  add(Recompute::block, "compute the block again");
  add(Recompute::offload, "compute the block again from host memory");
  return text;
}

std::string text_of_hosts(const RunFacts& facts) {
  const std::set<std::string> hosts(facts.hosts.begin(), facts.hosts.end());
  std::string text;
  size_t shown = 0;
  for (const std::string& host : hosts) {
    if (++shown > 4) return text + fmt::format(", ... ({} hosts)", hosts.size());
    text += (text.empty() ? "" : ", ") + host;
  }
  return text;
}

double peak_of_all(const RunFacts& facts) {
  double peak = 0.0;
  for (const std::string& gpu : facts.distinct_gpus) {
    const double of_gpu = peak_flops(gpu, facts.dtype);
    if (of_gpu == 0.0) return 0.0;  // a share of an unknown peak tells nothing
    peak += of_gpu;
  }
  return peak;
}

// "2 x NVIDIA H100 80GB HBM3, 1 x ..."
std::string text_of_gpus(const RunFacts& facts) {
  std::map<std::string, int> counts;
  for (const std::string& gpu : facts.distinct_gpus) ++counts[gpu];
  std::string text;
  for (const auto& [gpu, n] : counts)
    text += fmt::format("{}{} x {}", text.empty() ? "" : ", ", n, gpu);
  return text;
}

// "412 TFLOP/s"
std::string text_of_flops(double flops) {
  return flops >= 1e12 ? fmt::format("{:.4g} TFLOP/s", 1e-12 * flops)
                       : fmt::format("{:.3g} GFLOP/s", 1e-9 * flops);
}

// "zero3, the base within each node"
std::string text_of_strategy(const Config::Parallel& p) {
  const bool in_nodes = p.strategy == "zero3" && p.shard_group == "node";
  return p.strategy + (in_nodes ? ", the base within each node" : "");
}

double per_second(double amount, const RunTotals& totals) {
  return totals.step_seconds > 0.0 ? amount / totals.step_seconds : 0.0;
}

// Of the steps that this process made.
double percent_of_steps(double seconds, const RunTotals& totals) {
  return totals.own_step_seconds > 0.0 ? 100.0 * seconds / totals.own_step_seconds : 0.0;
}

// On the CPU host memory is of the same.
int64_t planned_bytes(const Arena& arena, const RunFacts& facts) {
  return MemoryBudget{0, facts.gpus.empty()}.needed(arena);
}

}  // namespace

std::string start_table(const Job& job, const RunFacts& facts, const Arena& arena,
                        const std::vector<Recompute>& policy, const TrainableLayout& layout) {
  const Architecture& a = job.architecture;
  const Config& c = job.config;
  std::string out;
  const auto row = [&](const char* name, const std::string& text) {
    out += fmt::format("  {:<11}{}\n", name, text);
  };
  out += fmt::format("utrain {} ({})\n", version(), revision());
  row("model", fmt::format("{} ({}, {} parameters, {} layers of {} x {}, {} heads, {} key heads){}",
                           c.model.path, a.model_type, text_of_parameters(a.n_parameters()),
                           a.n_layers, a.hidden_size, a.intermediate_size, a.n_heads, a.n_kv_heads,
                           c.model.init == "random" ? ", random weights" : ""));
  if (job.is_full()) {
    row("trained", fmt::format("all weights ({}), strategy {}",
                               text_of_parameters(layout.n_parameters()), c.parallel.strategy));
  } else {
    row("adapters",
        fmt::format("{} trainable ({:.3f} %), r {}, alpha {}, dropout {}{}, strategy {}",
                    text_of_parameters(layout.n_parameters()),
                    100.0 * static_cast<double>(layout.n_parameters()) /
                        static_cast<double>(a.n_parameters()),
                    job.lora.r, job.lora.alpha, c.lora.dropout,
                    c.lora.init_from.empty() ? "" : ", from " + c.lora.init_from,
                    text_of_strategy(c.parallel)));
  }
  const bool is_of_others = facts.ranks_of_run > 0 && facts.ranks_of_run != facts.ranks;
  row("ranks", fmt::format("{}{} on {} node{} ({}), backend {}, {}",
                           is_of_others ? fmt::format("{}, checked by ", facts.ranks_of_run) : "",
                           facts.ranks, facts.n_nodes, facts.n_nodes == 1 ? "" : "s",
                           text_of_hosts(facts), facts.backend, name_of(facts.dtype)));
  if (!facts.gpus.empty()) {
    const double peak = peak_of_all(facts);
    row("gpus", fmt::format("{} for {} rank{}{}", text_of_gpus(facts), facts.ranks,
                            facts.ranks == 1 ? "" : "s",
                            peak > 0.0 ? fmt::format(", peak {:.0f} TFLOP/s in {}", 1e-12 * peak,
                                                     name_of(facts.dtype))
                                       : ""));
  }
  const auto data_row = [&](const char* name, const std::string& path, const Rows& rows) {
    row(name, fmt::format("{}: {} documents in {} rows, {} tokens, {} targets", path,
                          text_of_count(static_cast<double>(rows.n_documents_kept)),
                          text_of_count(static_cast<double>(rows.n_rows())),
                          text_of_count(static_cast<double>(rows.n_tokens)),
                          text_of_count(static_cast<double>(rows.n_targets))));
  };
  data_row("data", c.data.train, job.train_rows);
  if (job.has_eval()) data_row("eval", c.data.eval, job.eval_rows);
  row("steps", fmt::format("{} of {} row{} ({} row{} a pass and rank), {} an epoch",
                           job.total_steps, job.global_batch_size,
                           job.global_batch_size == 1 ? "" : "s", c.train.micro_batch_size,
                           c.train.micro_batch_size == 1 ? "" : "s", job.steps_per_epoch));
  row("recompute", text_of_policy(policy));
  if (facts.passes_together > 1)
    row("together", fmt::format("{} passes, layer by layer", facts.passes_together));
  if (facts.layers_held > kFewestLayersHeld)
    row("gathered",
        fmt::format("layers stay until {} newer ones have come", facts.layers_held - 1));
  std::string memory = fmt::format("{} a rank:", text_of_bytes(planned_bytes(arena, facts)));
  for (const MemoryClass m : kMemoryClasses) {
    if (m != MemoryClass::host || arena.host_bytes() > 0)
      memory += fmt::format(" {} {}", name_of(m), text_of_bytes(arena.bytes(m)));
  }
  if (facts.reserve_bytes > 0)
    memory += fmt::format("; besides, libraries hold {}", text_of_bytes(facts.reserve_bytes));
  row("memory", memory);
  if (!facts.checkpoints.empty()) row("checkpoint", facts.checkpoints);
  if (!facts.continues.empty()) row("continues", "from " + facts.continues);
  for (const std::string& warning : facts.warnings) row("warning", warning);
  for (const std::string& warning : job.warnings) row("warning", warning);
  return out;
}

std::string summary_json(const Job& job, const RunFacts& facts, const Trainer& trainer,
                         const RunTotals& totals) {
  Json config = Json::object();
  for (const auto& [key, text] : config_values(job.config)) config.set(key, parse_json(text, key));
  Json model = Json::object();
  model.set("model_type", job.architecture.model_type)
      .set("parameters", job.architecture.n_parameters());
  model.set("trainable_parameters", trainer.model_state().layout().n_parameters());
  Json hosts = Json::array();
  for (const std::string& host : facts.hosts) hosts.push_back(host);
  Json gpus = Json::array();
  for (const std::string& gpu : facts.gpus) gpus.push_back(gpu);
  Json seconds = Json::object();
  seconds.set("start", totals.start_seconds).set("first_step", totals.first_step_seconds);
  for (size_t i = 0; i < kPhaseNames.size(); ++i) {
    seconds.set(kPhaseNames[i], trainer.phase_seconds(static_cast<Phase>(i)));
  }
  seconds.set("save", totals.save_seconds).set("wall", totals.wall_seconds);
  Json memory = Json::object();
  for (const MemoryClass m : kMemoryClasses)
    memory.set(std::string(name_of(m)), trainer.arena().bytes(m));
  memory.set("libraries", facts.reserve_bytes).set("process", totals.peak_memory);

  Json s = Json::object();
  s.set("version", version()).set("revision", revision()).set("config", config).set("model", model);
  s.set("ranks", facts.ranks).set("hosts", hosts).set("backend", facts.backend).set("gpus", gpus);
  s.set("dtype", name_of(facts.dtype))
      .set("steps", totals.steps)
      .set("skipped_steps", totals.skipped)
      .set("overflowed_steps", totals.overflowed);
  s.set("tokens", totals.tokens).set("target_tokens", totals.target_tokens);
  s.set("first_loss", totals.first_loss).set("last_loss", totals.last_loss);
  if (totals.n_evaluations > 0) {
    s.set("first_eval_loss", totals.first_eval_loss).set("last_eval_loss", totals.last_eval_loss);
  }
  s.set("tokens_per_second", per_second(static_cast<double>(totals.tokens), totals));
  const double flops = per_second(totals.model_flops, totals), peak = peak_of_all(facts);
  s.set("model_flops_per_second", flops).set("mfu", peak > 0.0 ? Json(flops / peak) : Json());
  s.set("exposed_communication_percent",
        facts.ranks > 1 ? Json(percent_of_steps(totals.exposed_seconds, totals)) : Json());
  Json checkpoints = Json::object();
  checkpoints.set("written", totals.n_checkpoints)
      .set("newest", totals.last_checkpoint.empty() ? Json() : Json(totals.last_checkpoint))
      .set("longest_stall_ms", 1e3 * totals.longest_stall_seconds)
      .set("stall_percent", percent_of_steps(totals.stall_seconds, totals));
  s.set("restarts", totals.restarts).set("checkpoints", checkpoints);
  s.set("seconds", seconds).set("peak_memory_bytes", memory);
  s.set(job.is_full() ? "trained_model" : "adapter",
        totals.output_path.empty() ? Json() : Json(totals.output_path))
      .set("exit_code", totals.exit_code);
  return to_pretty_text(s) + "\n";
}

std::string end_summary(const Job& job, const RunFacts& facts, const Trainer& trainer,
                        const RunTotals& totals) {
  std::string out;
  const auto row = [&](const char* name, const std::string& text) {
    out += fmt::format("  {:<11}{}\n", name, text);
  };
  const double rate = per_second(static_cast<double>(totals.tokens), totals);
  const double flops = per_second(totals.model_flops, totals), peak = peak_of_all(facts);
  const bool stopped = totals.exit_code == static_cast<int>(ExitCode::stopped);
  out += fmt::format("utrain {}: {} of {} steps in {}\n", stopped ? "stopped" : "finished",
                     totals.steps, job.total_steps, text_of_seconds(totals.wall_seconds));
  row("speed", fmt::format("{} tokens/s ({} a rank), {} tokens, {} of them targets",
                           text_of_count(rate), text_of_count(rate / facts.ranks),
                           text_of_count(static_cast<double>(totals.tokens)),
                           text_of_count(static_cast<double>(totals.target_tokens))));
  row("work", fmt::format("{} of model FLOPs{}", text_of_flops(flops),
                          peak > 0.0 ? fmt::format(", MFU {:.1f} % of {:.0f} TFLOP/s",
                                                   100.0 * flops / peak, 1e-12 * peak)
                                     : ""));
  row("loss", fmt::format("{:.4f} -> {:.4f}{}{}", totals.first_loss, totals.last_loss,
                          totals.n_evaluations > 0
                              ? fmt::format(", eval {:.4f} -> {:.4f}", totals.first_eval_loss,
                                            totals.last_eval_loss)
                              : "",
                          totals.skipped > 0
                              ? fmt::format(", {} steps skipped, {} of them overflows of float16",
                                            totals.skipped, totals.overflowed)
                              : ""));
  std::string split =
      fmt::format("start {}, first step done after {}", text_of_seconds(totals.start_seconds),
                  text_of_seconds(totals.first_step_seconds));
  for (size_t i = 0; i < kPhaseNames.size(); ++i) {
    split += fmt::format(", {} {}", kPhaseNames[i],
                         text_of_seconds(trainer.phase_seconds(static_cast<Phase>(i))));
  }
  row("time", split + fmt::format(", save {}", text_of_seconds(totals.save_seconds)));
  if (facts.ranks > 1) {
    row("exposed", fmt::format("{:.1f} % of the step time is communication that computing did not "
                               "hide, and waiting for other ranks",
                               percent_of_steps(totals.exposed_seconds, totals)));
  }
  if (totals.n_checkpoints > 0 || totals.restarts > 0) {
    row("checkpoint",
        fmt::format("{} written, the longest stall {} ({:.2f} % of the step time in all), {} "
                    "restart{}",
                    totals.n_checkpoints, text_of_duration(totals.longest_stall_seconds),
                    percent_of_steps(totals.stall_seconds, totals), totals.restarts,
                    totals.restarts == 1 ? "" : "s"));
  }
  row("memory", fmt::format("{} planned a rank, {} at most in use by a rank's process",
                            text_of_bytes(planned_bytes(trainer.arena(), facts)),
                            text_of_bytes(totals.peak_memory)));
  if (!totals.output_path.empty() && job.is_full()) {
    row("output", fmt::format("{} ({} tensors)", totals.output_path, totals.output_tensors));
  } else if (!totals.output_path.empty()) {
    row("adapter", fmt::format("{} ({} tensors, read back and equal)", totals.output_path,
                               totals.output_tensors));
  }
  return out;
}

}  // namespace utrain
