#include "app/strategy_warning.h"

#include <algorithm>

#include "app/progress.h"
#include "core/meanwhile.h"

namespace utrain {

namespace {

constexpr double kFewBytes = 0.05;  // a share of a rank's memory that nobody shards for
constexpr double kAsMuch = 1.02;    // FLOPs that are as many

int64_t model_bytes(const StrategyPlan& s) {
  return s.bytes_of(MemoryClass::base) + s.bytes_of(MemoryClass::adapters) +
         s.bytes_of(MemoryClass::gradients) + s.bytes_of(MemoryClass::optimizer);
}

// What a pass of zero3 costs: "gathers 22.0 GB a pass, 442 ms at 50 GB/s beside 352 ms of
// computing".
std::string text_of_gathers(const StrategyPlan& zero3, const Link& link, double flops_per_second) {
  const auto bytes = static_cast<double>(zero3.sent.all_gather);
  std::string text = fmt::format("zero3 gathers {} a pass", text_of_bytes(zero3.sent.all_gather));
  if (flops_per_second > 0.0) {
    text +=
        fmt::format(", {} at {:.0f} GB/s ({}) beside {} of computing",
                    text_of_duration(bytes / link.bytes_per_second), link.bytes_per_second * 1e-9,
                    link.name, text_of_duration(zero3.flops / flops_per_second));
  }
  return text;
}

}  // namespace

std::string strategy_warning(Job& job, const PlanMachine& machine, int n_nodes,
                             double flops_per_second) {
  const std::string strategy = job.config.parallel.strategy;
  if (strategy == "ddp" || job.config.parallel.offload_params) return "";
  if (job.ranks == 1)
    return fmt::format("{} on one rank saves nothing: it shards over ranks", strategy);
  const Meanwhile one_pass(
      job.global_batch_size,
      std::min(job.global_batch_size, job.config.train.micro_batch_size * job.ranks));
  const StrategyPlan ours = plan_strategy(job, strategy, machine);
  const StrategyPlan ddp = plan_strategy(job, "ddp", machine);
  const auto fits = [&](const StrategyPlan& s) {
    return fmt::format("{} fits too, {} of {} a rank", s.strategy, text_of_bytes(s.total_bytes),
                       text_of_bytes(machine.budget));
  };
  if (strategy != "zero3") {
    const int64_t saved = model_bytes(ddp) - model_bytes(ours);
    if (!ddp.fits || static_cast<double>(saved) > kFewBytes * static_cast<double>(ddp.total_bytes))
      return "";
    return fmt::format("{} saves {} a rank, for it does not shard the base; {}", strategy,
                       text_of_bytes(saved), fits(ddp));
  }
  const bool over_network = n_nodes > 1 && job.config.parallel.shard_group != "node";
  const Link& link = kLinks[over_network ? kNetwork : kNvlink];
  const std::string gathers = text_of_gathers(ours, link, flops_per_second);
  const StrategyPlan less = job.is_full() ? plan_strategy(job, "zero2", machine) : ddp;
  for (const StrategyPlan* s : {&ddp, &less}) {
    if (s->fits && s->flops < kAsMuch * ours.flops) return fmt::format("{}; {}", gathers, fits(*s));
  }
  const bool waits =
      flops_per_second > 0.0 && static_cast<double>(ours.sent.all_gather) / link.bytes_per_second >
                                    ours.flops / flops_per_second;
  if (!waits) return "";
  return fmt::format("{}: it waits; raise train.micro_batch_size{}", gathers,
                     over_network ? ", or set parallel.shard_group = \"node\"" : "");
}

}  // namespace utrain
