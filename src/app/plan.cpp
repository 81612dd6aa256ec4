#include "app/plan.h"

#include <algorithm>

#include "app/machine.h"
#include "app/peak_flops.h"
#include "app/progress.h"
#include "comm/nccl_collectives.h"
#include "core/available_memory.h"
#include "core/meanwhile.h"
#include "plan/recording_backend.h"
#include "train/choose_layers_held.h"
#include "train/choose_passes.h"
#include "train/choose_recompute.h"
#include "train/trainer.h"

namespace utrain {

namespace {

constexpr int kAssumedCapability = 90;      // an H100
constexpr double kAssumedGpuMemory = 80.0;  // GB: A100 and H100
constexpr double kCpuFlops = 1e11;          // a second: only to compare strategies with
constexpr double kWorthIt = 0.98;           // a gain below this is none, and so is one below
constexpr double kWorthSeconds = 1e-3;      // what the greater number of calls costs

// Scratch memory of NCCL collectives of so many ranks.
int64_t nccl_bytes(const Config& config, int ranks) {
  return ranks > 1 && config.parallel.collectives != "mpi" ? NcclOptions{}.scratch_bytes : 0;
}

void set_machine(Plan& plan) {
  const Config& c = plan.config;
  plan.gpu = c.run.backend != "cpu";
  plan.machine.gpu = plan.gpu;
  plan.machine.ranks_on_node = plan.ranks_on_node;
  if (!plan.gpu) {
    check_cpu_collectives(c);
    plan.machine.dtype = DType::f32;  // the CPU emulates the others in it
    plan.machine.budget = share_of(available_memory(), plan.ranks_on_node);
    return;
  }
  plan.machine.dtype = meaning_of_dtype(c.model.dtype, kAssumedCapability);
  plan.machine.row_multiple = kCudaRowMultiple;
  plan.flops_per_second = kShareOfPeak * peak_flops("H100", plan.machine.dtype);
  plan.reserve_bytes = kCudaReserveBytes + nccl_bytes(c, plan.ranks);
  plan.machine.node_collectives_bytes = nccl_bytes(c, plan.ranks_on_node);
  plan.context_bytes = kCudaContextBytes;
  plan.gpu_memory_is_assumed = c.run.gpu_memory_gb == 0.0;
  plan.gpu_memory_gb = plan.gpu_memory_is_assumed ? kAssumedGpuMemory : c.run.gpu_memory_gb;
  // A cap does not count the context, neither here nor in a run.
  const int64_t held = plan.reserve_bytes + (plan.gpu_memory_is_assumed ? plan.context_bytes : 0);
  const double bytes = plan.gpu_memory_gb * 1e9 - static_cast<double>(held);
  if (bytes <= 0.0) {
    fail(ExitCode::usage, "run.gpu_memory_gb",
         fmt::format("{} GB, of which libraries hold {}", plan.gpu_memory_gb,
                     text_of_bytes(plan.reserve_bytes)),
         "raise it, or set 0 to plan for what GPUs usually have");
  }
  plan.machine.budget =
      static_cast<int64_t>(plan.gpu_memory_is_assumed ? kShareOfMemory * bytes : bytes);
}

int nodes_of(int ranks, int ranks_on_node) {
  return ranks_on_node > 0 ? (ranks + ranks_on_node - 1) / ranks_on_node : 1;
}

// A rank's collectives that only count, of all ranks and of those of its node.
struct SilentRank {
  SilentRank(int rank, int ranks, int ranks_on_node) : world(rank, ranks), node(rank, ranks) {
    if (ranks_on_node == 0) return;
    const int begin = rank / ranks_on_node * ranks_on_node;
    node = SilentCollectives(rank - begin, std::min(ranks_on_node, ranks - begin));
  }
  BytesSent sent() const { return world.sent() + node.sent(); }

  SilentCollectives world, node;
};

// If nothing is hidden: how much is, the links and the ranks on a node decide.
double step_seconds(const Plan& plan, const StrategyPlan& s) {
  const double flops_per_second = plan.flops_per_second > 0.0 ? plan.flops_per_second : kCpuFlops;
  return s.flops / flops_per_second +
         static_cast<double>(s.sent.sum()) / kLinks[kNetwork].bytes_per_second;
}

// The least sharding that fits, unless more of it saves time (less is computed again, or sent);
// zero3, which sends most, only where nothing else fits.
int strategy_to_take(const Plan& plan) {
  int best = -1;
  for (size_t i = 0; i < plan.strategies.size(); ++i) {
    const StrategyPlan& s = plan.strategies[i];
    if (!s.fits || (best >= 0 && s.strategy == "zero3")) continue;
    const auto than_best = [&] {
      const double now = step_seconds(plan, plan.strategies[static_cast<size_t>(best)]);
      const double then = step_seconds(plan, s);
      return then < kWorthIt * now && then < now - kWorthSeconds;
    };
    if (best < 0 || than_best()) best = static_cast<int>(i);
  }
  return best;
}

std::string sending(const Plan& plan, const StrategyPlan& s) {
  const Link& link = kLinks[kNetwork];
  const double seconds = static_cast<double>(s.sent.sum()) / link.bytes_per_second;
  std::string text = fmt::format("sends {} a step", text_of_bytes(s.sent.sum()));
  if (plan.flops_per_second > 0.0) {
    text += fmt::format(", {} at {:.0f} GB/s beside {} of computing", text_of_duration(seconds),
                        link.bytes_per_second * 1e-9,
                        text_of_duration(s.flops / plan.flops_per_second));
  }
  return text;
}

std::string reason(const Plan& plan) {
  const auto at = [&](size_t i) -> const StrategyPlan& { return plan.strategies[i]; };
  if (plan.taken < 0) {
    const StrategyPlan& least = *std::min_element(
        plan.strategies.begin(), plan.strategies.end(),
        [](const auto& a, const auto& b) { return a.needed_bytes < b.needed_bytes; });
    const Config& c = plan.config;
    std::string remedy = "lower train.micro_batch_size or data.seq_len";
    if (c.train.recompute == "none" || c.train.recompute == "mlp")
      remedy += ", set train.recompute = \"auto\"";
    if (plan.gpu && c.train.method == "lora" && !c.parallel.offload_params)
      remedy += ", set parallel.offload_params = true";
    if (plan.gpu && c.train.method == "full" && !c.parallel.offload_optimizer)
      remedy += ", set parallel.offload_optimizer = true";
    return fmt::format("none fits: {} needs the least, {}; {}, or plan for more ranks",
                       least.strategy, text_of_shortage(least.needed_bytes, plan.machine.budget),
                       remedy);
  }
  const auto taken = static_cast<size_t>(plan.taken);
  const StrategyPlan& best = at(taken);
  const std::string fits = fmt::format("{} of {} a rank", text_of_bytes(best.needed_bytes),
                                       text_of_bytes(plan.machine.budget));
  if (plan.ranks == 1) return fmt::format("take ddp: one rank has nobody to share with; {}", fits);
  const std::string head = fmt::format("take {}: ", best.strategy);
  if (best.strategy == "ddp") {
    const int64_t saved = best.total_bytes - at(2).total_bytes;
    std::string text = fmt::format("{}it fits, {}, and {}", head, fits, sending(plan, best));
    if (saved > 0)
      text +=
          fmt::format("; zero2 would save {} ({:.1f} %)", text_of_bytes(saved),
                      100.0 * static_cast<double>(saved) / static_cast<double>(best.total_bytes));
    return text + fmt::format("; zero3 would send {}", text_of_bytes(at(3).sent.sum()));
  }
  if (best.strategy == "zero3") {
    return fmt::format("{}nothing else fits (zero2 needs {}), it takes {}; it {}", head,
                       text_of_bytes(at(2).total_bytes), fits, sending(plan, best));
  }
  const StrategyPlan& less = at(taken - 1);
  if (!less.fits) {
    return fmt::format("{}the least sharding that fits, {} ({} needs {}); it {}", head, fits,
                       less.strategy, text_of_bytes(less.total_bytes), sending(plan, best));
  }
  const std::string gain =
      best.flops < kWorthIt * less.flops
          ? fmt::format("computes {:.3g} TFLOP a step where {} computes {:.3g}", best.flops * 1e-12,
                        less.strategy, less.flops * 1e-12)
          : fmt::format("sends less than {}, which sends {}", less.strategy,
                        text_of_bytes(less.sent.sum()));
  return fmt::format("{}it {}, and takes {} ({} there); it {}", head, gain, fits,
                     text_of_bytes(less.total_bytes), sending(plan, best));
}

}  // namespace

StrategyPlan plan_strategy(Job& job, const std::string& strategy, const PlanMachine& machine) {
  const Meanwhile other(job.config.parallel.strategy, strategy);
  RecordingBackend backend(machine.dtype, machine.row_multiple);
  const bool in_nodes = shards_in_nodes(job.config, nodes_of(job.ranks, machine.ranks_on_node));
  const auto groups_of = [&](SilentRank& rank) {
    return Groups(rank.world, in_nodes ? rank.node : rank.world);
  };
  SilentRank last_rank(job.ranks - 1, job.ranks, machine.ranks_on_node);
  SilentRank first_rank(0, job.ranks, machine.ranks_on_node);
  const Groups last = groups_of(last_rank), first = groups_of(first_rank);
  StrategyPlan plan;
  plan.strategy = strategy;
  plan.collectives_bytes = in_nodes ? machine.node_collectives_bytes : 0;
  const MemoryBudget budget = {machine.budget - plan.collectives_bytes, !machine.gpu};
  const auto fits = [&](const Arena& arena) { return budget.holds(arena); };
  plan.policy = wanted_recompute(job, backend, last, budget);
  plan.passes_together = choose_passes(job, backend, last, plan.policy, fits);
  plan.layers_held =
      machine.gpu ? choose_layers_held(job, backend, last, plan.policy, plan.passes_together, fits)
                  : kFewestLayersHeld;
  const Trainer largest(job, backend, last, plan.policy, plan.passes_together, plan.layers_held);
  for (const MemoryClass m : kMemoryClasses)
    plan.bytes[static_cast<size_t>(m)] = largest.arena().bytes(m);
  plan.total_bytes = largest.arena().bytes();
  plan.needed_bytes = budget.needed(largest.arena()) + plan.collectives_bytes;
  plan.fits = fits(largest.arena());
  Trainer busiest(job, backend, first, plan.policy, plan.passes_together, plan.layers_held);
  busiest.place();
  busiest.train_step(1);  // which gathers what later steps find there
  const BytesSent before = first_rank.sent();
  backend.record(true);
  busiest.train_step(1);
  for (const OpRecord& record : backend.records()) {
    plan.flops += record.cost.flops;
    if (record.op == "copy_in") plan.copied_in = static_cast<int64_t>(record.cost.bytes);
    if (record.op == "copy_out") plan.copied_out = static_cast<int64_t>(record.cost.bytes);
  }
  plan.sent = first_rank.sent() - before;
  return plan;
}

Plan make_plan(const std::string& input, const Config& config, int ranks, int ranks_on_node,
               bool knows_nodes) {
  Plan plan;
  plan.input = input;
  plan.config = config;
  plan.ranks = ranks;
  plan.ranks_on_node = ranks_on_node;
  set_machine(plan);
  Job job = read_job(config, ranks);
  plan.warnings = job.warnings;
  if (!knows_nodes && config.parallel.strategy == "zero3" &&
      config.parallel.shard_group == "node" && nodes_of(ranks, ranks_on_node) == 1) {
    plan.warnings.push_back(
        "parallel.shard_group = \"node\": how many ranks a node has is not known here; zero3 is "
        "planned as one node of all ranks");
  }
  for (const char* strategy : kStrategies)
    plan.strategies.push_back(plan_strategy(job, strategy, plan.machine));
  plan.taken = strategy_to_take(plan);
  plan.why = reason(plan);
  return plan;
}

}  // namespace utrain
