#include "app/plan_table.h"

#include <algorithm>
#include <functional>

#include "app/progress.h"
#include "app/version.h"
#include "io/json.h"

namespace utrain {

namespace {

int64_t layers_with(const StrategyPlan& s, Recompute r) {
  return std::count(s.policy.begin(), s.policy.end(), r);
}

// "none", "12 mlp", "4 mlp 28 block": layers.
std::string text_of_recompute(const StrategyPlan& s) {
  const int64_t mlp = layers_with(s, Recompute::mlp), block = layers_with(s, Recompute::block);
  if (layers_with(s, Recompute::offload) > 0) return "all, offload";
  std::string text;
  if (mlp > 0) text += fmt::format("{} mlp", mlp);
  if (block > 0) text += fmt::format("{}{} block", text.empty() ? "" : " ", block);
  return text.empty() ? "none" : text;
}

std::string assumptions(const Plan& plan) {
  std::string text;
  const auto line = [&](const std::string& words) { text += fmt::format("  {}\n", words); };
  if (!plan.gpu) {
    line(fmt::format(
        "memory: 0.9 of what this machine has available, for {} rank{} on it, with their host "
        "memory; how fast it computes is not known here",
        plan.ranks_on_node, plan.ranks_on_node == 1 ? "" : "s"));
    return text;
  }
  line("host memory: whether a node has it for all its ranks only a run can tell");
  const std::string libraries = text_of_bytes(plan.reserve_bytes),
                    context = text_of_bytes(plan.context_bytes);
  if (plan.gpu_memory_is_assumed) {
    line(
        fmt::format("memory: GPUs of {:.4g} GB (assumed: run.gpu_memory_gb is not set), less {} of "
                    "utrain's libraries and {} of CUDA's context, and 0.9 of the rest",
                    plan.gpu_memory_gb, libraries, context));
  } else {
    line(fmt::format("memory: {:.4g} GB of a GPU, less {} of utrain's libraries",
                     plan.gpu_memory_gb, libraries));
  }
  line(
      fmt::format("on the GPU: what nvidia-smi shows of a rank, with {} of libraries and {} of "
                  "CUDA's context; NCCL's own buffers only a run can measure",
                  libraries, context));
  for (const StrategyPlan& s : plan.strategies) {
    if (s.collectives_bytes == 0) continue;
    line(fmt::format("{} needs {} more, for collectives of a node's ranks", s.strategy,
                     text_of_bytes(s.collectives_bytes)));
  }
  line(
      fmt::format("computing: {:.0f} TFLOP/s a rank, {:.0f} % of an H100's peak; part of the "
                  "sending goes on meanwhile",
                  plan.flops_per_second * 1e-12, 100.0 * kShareOfPeak));
  return text;
}

Json json_of(const Plan& plan, const StrategyPlan& s) {
  Json memory = Json::object(), recompute = Json::object(), sent = Json::object();
  for (const MemoryClass m : kMemoryClasses) memory.set(std::string(name_of(m)), s.bytes_of(m));
  memory.set("total", s.total_bytes).set("needed", s.needed_bytes);
  recompute.set("keep", layers_with(s, Recompute::keep))
      .set("mlp", layers_with(s, Recompute::mlp))
      .set("block", layers_with(s, Recompute::block))
      .set("offload", layers_with(s, Recompute::offload));
  sent.set("all_reduce", s.sent.all_reduce).set("reduce_scatter", s.sent.reduce_scatter);
  sent.set("all_gather", s.sent.all_gather).set("total", s.sent.sum());
  Json transfer = Json::array();
  for (const Link& link : kLinks) {
    Json over = Json::object();
    over.set("link", link.name).set("bytes_per_second", link.bytes_per_second);
    over.set("seconds", static_cast<double>(s.sent.sum()) / link.bytes_per_second);
    transfer.push_back(over);
  }
  Json json = Json::object();
  json.set("strategy", s.strategy).set("fits", s.fits).set("memory_bytes", memory);
  json.set("recompute_layers", recompute).set("passes_together", s.passes_together);
  json.set("layers_held", s.layers_held);
  json.set("sent_bytes_per_step", sent);
  json.set("copied_from_host_bytes_per_step", s.copied_in)
      .set("copied_to_host_bytes_per_step", s.copied_out)
      .set("flops_per_step", s.flops);
  json.set("compute_seconds",
           plan.flops_per_second > 0.0 ? Json(s.flops / plan.flops_per_second) : Json());
  return json.set("transfer", transfer);
}

}  // namespace

std::string plan_table(const Plan& plan) {
  const bool full = plan.config.train.method == "full";
  std::string out =
      fmt::format("utrain plan: {}, {} on {} rank{}, {} on {}\n", plan.input,
                  full ? "full fine-tuning" : "LoRA", plan.ranks, plan.ranks == 1 ? "" : "s",
                  name_of(plan.machine.dtype), plan.gpu ? "GPUs" : "the CPU");
  using Cell = std::function<std::string(const StrategyPlan&)>;
  const auto row = [&](const std::string& name, const Cell& cell) {
    out += fmt::format("  {:<34}", name);
    for (const StrategyPlan& s : plan.strategies) out += fmt::format("{:>13}", cell(s));
    out += "\n";
  };
  const auto bytes_row = [&](const std::string& name,
                             const std::function<int64_t(const StrategyPlan&)>& n) {
    row(name, [&](const StrategyPlan& s) { return n(s) == 0 ? "-" : text_of_bytes(n(s)); });
  };
  row("", [](const StrategyPlan& s) { return s.strategy; });
  for (const MemoryClass m : kMemoryClasses) {
    if (m == MemoryClass::host) continue;
    bytes_row(std::string(name_of(m)), [&](const StrategyPlan& s) { return s.bytes_of(m); });
  }
  bytes_row("memory a rank", [](const StrategyPlan& s) { return s.total_bytes; });
  if (plan.gpu) {
    bytes_row("  on the GPU", [&](const StrategyPlan& s) {
      return s.needed_bytes + plan.reserve_bytes + plan.context_bytes;
    });
  }
  row(fmt::format("fits in {}", text_of_bytes(plan.machine.budget)),
      [](const StrategyPlan& s) { return s.fits ? "yes" : "no"; });
  const bool offloads =
      std::any_of(plan.strategies.begin(), plan.strategies.end(),
                  [](const StrategyPlan& s) { return s.copied_in + s.copied_out > 0; });
  bytes_row("host memory a rank",
            [](const StrategyPlan& s) { return s.bytes_of(MemoryClass::host); });
  if (offloads) {
    bytes_row("  copied from it a step", [](const StrategyPlan& s) { return s.copied_in; });
    bytes_row("  copied to it a step", [](const StrategyPlan& s) { return s.copied_out; });
  }
  row("layers computed again", text_of_recompute);
  row("passes together",
      [](const StrategyPlan& s) { return fmt::format("{}", s.passes_together); });
  row("gathered layers held", [](const StrategyPlan& s) {
    return s.strategy == "zero3" ? fmt::format("{}", s.layers_held) : "-";
  });
  bytes_row("all-reduced a step", [](const StrategyPlan& s) { return s.sent.all_reduce; });
  bytes_row("reduce-scattered a step", [](const StrategyPlan& s) { return s.sent.reduce_scatter; });
  bytes_row("gathered a step", [](const StrategyPlan& s) { return s.sent.all_gather; });
  bytes_row("sent a rank and step", [](const StrategyPlan& s) { return s.sent.sum(); });
  for (const Link& link : kLinks) {
    row(fmt::format("  at {:.0f} GB/s ({})", link.bytes_per_second * 1e-9, link.name),
        [&](const StrategyPlan& s) {
          return text_of_duration(static_cast<double>(s.sent.sum()) / link.bytes_per_second);
        });
  }
  row("TFLOP a rank and step",
      [](const StrategyPlan& s) { return fmt::format("{:.4g}", s.flops * 1e-12); });
  if (plan.flops_per_second > 0.0) {
    row("  computing",
        [&](const StrategyPlan& s) { return text_of_duration(s.flops / plan.flops_per_second); });
  }
  for (const StrategyPlan& s : plan.strategies) {
    if (!s.fits)
      out +=
          fmt::format("  {} does not fit: needs {}\n", s.strategy, text_of_bytes(s.needed_bytes));
  }
  for (const std::string& warning : plan.warnings) out += fmt::format("  warning: {}\n", warning);
  return out + assumptions(plan) + plan.why + "\n";
}

std::string plan_json(const Plan& plan) {
  Json strategies = Json::array(), warnings = Json::array();
  for (const std::string& warning : plan.warnings) warnings.push_back(warning);
  for (const StrategyPlan& s : plan.strategies) strategies.push_back(json_of(plan, s));
  Json json = Json::object();
  json.set("version", version()).set("input", plan.input).set("ranks", plan.ranks);
  json.set("method", plan.config.train.method).set("backend", plan.gpu ? "cuda" : "cpu");
  json.set("dtype", name_of(plan.machine.dtype));
  json.set("gpu_memory_gb", plan.gpu ? Json(plan.gpu_memory_gb) : Json());
  json.set("gpu_memory_is_assumed", plan.gpu_memory_is_assumed);
  json.set("reserve_bytes", plan.reserve_bytes).set("context_bytes", plan.context_bytes);
  json.set("budget_bytes", plan.machine.budget);
  json.set("flops_per_second", plan.flops_per_second > 0.0 ? Json(plan.flops_per_second) : Json());
  json.set("strategies", strategies).set("warnings", warnings);
  json.set("take", plan.taken >= 0 ? Json(kStrategies[static_cast<size_t>(plan.taken)]) : Json());
  return to_pretty_text(json.set("why", plan.why)) + "\n";
}

}  // namespace utrain
