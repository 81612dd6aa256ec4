// Plans: their memory is that of a real trainer, and their bytes are what the strategies' arithmetic
// says.
#include "app/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "app/plan_table.h"
#include "app/strategy_warning.h"
#include "comm/nccl_collectives.h"
#include "plan/recording_backend.h"
#include "plan_case.h"
#include "train/choose_recompute.h"
#include "train/trainer.h"

namespace utrain {
namespace {

TEST(Plan, MemoryIsThatOfARealTrainer) {
  const std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"lora", "false"}, {"lora", "true"}, {"full", "false"}};
  for (const auto& [method, offloads] : cases) {
    for (int ranks = 1; ranks <= 4; ++ranks) {
      Job job = job_of(ranks, kTwoRows,
                       {{"train.method", method}, {"parallel.offload_params", offloads}});
      for (const char* strategy : kStrategies) {
        SCOPED_TRACE(fmt::format("{}, {} on {} ranks", method, strategy, ranks));
        const StrategyPlan plan = plan_strategy(job, strategy, kCpu);
        EXPECT_EQ(job.config.parallel.strategy, "ddp");
        EXPECT_TRUE(plan.fits);
        Job real = job_of(ranks, kTwoRows,
                          {{"train.method", method},
                           {"parallel.offload_params", offloads},
                           {"parallel.strategy", strategy}});
        for (int rank = 0; rank < ranks; ++rank) {
          SilentCollectives collectives(rank, ranks);
          const auto policy = choose_recompute(real, *backend, collectives, {kPlenty});
          const Trainer trainer(real, *backend, collectives, policy, plan.passes_together,
                                plan.layers_held);
          if (rank < ranks - 1) {
            EXPECT_LE(trainer.arena().bytes(), plan.total_bytes);
            continue;
          }
          EXPECT_EQ(trainer.arena().bytes(), plan.total_bytes);
          const int64_t copy = 3 * 4 * trainer.model_state().layout().n_elem() / ranks;
          EXPECT_GE(trainer.arena().host_bytes(), copy) << "for the checkpoint of a stop";
          EXPECT_EQ(plan.copied_in > 0, offloads == "true");
          EXPECT_EQ(policy, plan.policy);
          for (const MemoryClass m : kMemoryClasses)
            EXPECT_EQ(trainer.arena().bytes(m), plan.bytes_of(m)) << name_of(m);
        }
      }
    }
  }
}

// A GPU's spare memory holds gathered layers: as many as fit, eight at most.
TEST(Plan, Zero3HoldsLayersOnAGpu) {
  Job job = job_of(2, kTwoRows);
  const auto plan_of = [&](int64_t budget, bool gpu) {
    return plan_strategy(job, "zero3", {DType::f32, 1, budget, gpu});
  };
  const StrategyPlan cpu = plan_of(kPlenty, false), most = plan_of(kPlenty, true);
  ASSERT_EQ(job.architecture.n_layers, 4);
  EXPECT_EQ(cpu.layers_held, 2);
  EXPECT_EQ(most.layers_held, 4);
  EXPECT_EQ(plan_of(most.total_bytes, true).layers_held, 4);
  EXPECT_EQ(plan_of(most.total_bytes - 1, true).layers_held, 3);
  EXPECT_EQ(plan_of(cpu.total_bytes, true).layers_held, 2);
  EXPECT_LT(plan_of(most.total_bytes - 1, true).total_bytes, most.total_bytes);
  EXPECT_LT(most.sent.all_gather, cpu.sent.all_gather / 2) << "the base stays";
  job.architecture.n_layers = 20;
  job.architecture.window.resize(20, 0);
  EXPECT_EQ(plan_of(kPlenty, true).layers_held, 8);
  EXPECT_EQ(plan_strategy(job, "zero2", {DType::f32, 1, kPlenty, true}).layers_held, 2);
}

// Gradients go out in float32 and values come back as they are computed with, once a step.
TEST(Plan, CopiesOfAnOffloadedOptimizerAreCounted) {
  Job job = job_of(2, kTwoRows, {{"parallel.offload_optimizer", "true"}});
  const int64_t n = Adapters(job.architecture, job.lora).layout().n_elem();
  const StrategyPlan plan = plan_strategy(job, "ddp", {DType::bf16, 1, kPlenty});
  EXPECT_EQ(plan.copied_out, 4 * n);
  EXPECT_EQ(plan.copied_in, 2 * n);
  EXPECT_EQ(plan.bytes_of(MemoryClass::optimizer), 0);
  EXPECT_GT(plan.bytes_of(MemoryClass::host), 16 * n);
}

// What a rank sends of n elements, once through the ranks; each call rounds down.
double share(double bytes, int ranks) {
  return bytes * (ranks - 1) / ranks;
}

TEST(Plan, BytesAreWhatTheStrategiesSend) {
  constexpr double kScalar = 8.0, kRounding = 64.0;  // bytes
  for (int ranks = 1; ranks <= 4; ++ranks) {
    // 4 passes of one row: gradients of zero2 travel in each, those of zero3 once for all passes
    // that go together.
    Job job = job_of(ranks, "micro_batch_size = 1\ngradient_accumulation_steps = 4");
    const Architecture& a = job.architecture;
    const double n = static_cast<double>(Adapters(a, job.lora).layout().n_elem());
    const double L = static_cast<double>(a.n_layers), passes = 4.0;
    const double layer = static_cast<double>(layer_image(a, 0, DType::f32).bytes);
    // Both of a unit's neighbours stay where a pass turns round: forward and backward gather L - 2
    // layers each, the base's; the adapters changed, so the first forward gathers all of theirs.
    const auto gathered = [&](double times) {
      return times * 2.0 * (L - 2.0) * layer + 4.0 * n / L * (times * 2.0 * (L - 2.0) + 2.0);
    };
    const double norms = 2.0 * share(8.0 * n / 1024.0, ranks);
    const double loss = 2.0 * share(kScalar, ranks);
    PlanMachine machine = kCpu;
    const auto expect = [&](const char* strategy, double all_reduce, double scatter,
                            double gather) {
      SCOPED_TRACE(fmt::format("{} on {} ranks", strategy, ranks));
      const BytesSent sent = plan_strategy(job, strategy, machine).sent;
      EXPECT_NEAR(static_cast<double>(sent.all_reduce), all_reduce, kRounding);
      EXPECT_NEAR(static_cast<double>(sent.reduce_scatter), scatter, kRounding);
      EXPECT_NEAR(static_cast<double>(sent.all_gather), gather, kRounding);
      EXPECT_EQ(sent.broadcast, 0);
      EXPECT_EQ(sent.sum(), sent.all_reduce + sent.reduce_scatter + sent.all_gather);
    };
    expect("ddp", 2.0 * share(4.0 * n, ranks) + loss, 0.0, 0.0);
    expect("zero1", norms + loss, share(4.0 * n, ranks), share(4.0 * n, ranks));
    expect("zero2", norms + loss, passes * share(4.0 * n, ranks), share(4.0 * n, ranks));
    expect("zero3", norms + loss, share(4.0 * n, ranks), share(gathered(1.0), ranks));
    const auto bytes_of_zero3 = [&](int64_t together) {
      const Job zero3 = job_of(ranks, "micro_batch_size = 1\ngradient_accumulation_steps = 4",
                               {{"parallel.strategy", "zero3"}});
      RecordingBackend backend(DType::f32);
      SilentCollectives last(ranks - 1, ranks);
      const std::vector<Recompute> keep(static_cast<size_t>(a.n_layers), Recompute::keep);
      return MemoryBudget{0, true}.needed(Trainer(zero3, backend, last, keep, together).arena());
    };
    for (const int64_t together : {1, 2}) {
      machine.budget = bytes_of_zero3(together);
      const double times = passes / static_cast<double>(together);
      expect("zero3", norms + loss, times * share(4.0 * n, ranks), share(gathered(times), ranks));
    }
  }
}

TEST(Plan, RecomputeFollowsTheBudget) {
  Job job = job_of(2, kTwoRows);
  const StrategyPlan all = plan_strategy(job, "ddp", kCpu);
  PlanMachine machine = kCpu;
  machine.budget = all.total_bytes - 1;
  const StrategyPlan less = plan_strategy(job, "ddp", machine);
  EXPECT_TRUE(less.fits);
  EXPECT_LT(less.total_bytes, all.total_bytes);
  EXPECT_GT(less.flops, all.flops);
  machine.budget = 1 << 20;
  const StrategyPlan least = plan_strategy(job, "ddp", machine);
  EXPECT_FALSE(least.fits);
  EXPECT_EQ(least.policy, std::vector<Recompute>(4, Recompute::block));
  EXPECT_GT(least.flops, less.flops);
}

TEST(Plan, OnTheCpuHostMemoryIsOfTheSameBudget) {
  Job job = job_of(2, kTwoRows + "\nrecompute = \"none\"",
                   {{"train.method", "full"}, {"parallel.offload_optimizer", "true"}});
  PlanMachine machine = kCpu;
  machine.budget = plan_strategy(job, "zero1", machine).needed_bytes;
  EXPECT_TRUE(plan_strategy(job, "zero1", machine).fits);
  machine.budget -= 1;
  EXPECT_FALSE(plan_strategy(job, "zero1", machine).fits);
  machine.gpu = true;
  EXPECT_TRUE(plan_strategy(job, "zero1", machine).fits);
}

// Nodes of two ranks: a rank has collectives of all and of its node, each with its scratch memory.
TEST(Plan, InNodesZero3HasTheBaseAndTheCollectivesOfANode) {
  const auto plan_of = [](int ranks_on_node, const char* collectives, bool knows_nodes = true) {
    const std::vector<Override> more = {{"parallel.strategy", "zero3"},
                                        {"parallel.shard_group", "node"},
                                        {"parallel.collectives", collectives}};
    return make_plan("plan.toml", parse_config(input_text(kTwoRows), "plan.toml", more), 4,
                     ranks_on_node, knows_nodes);
  };
  const auto besides = [](const Plan& plan, size_t i) {
    return plan.strategies[i].needed_bytes - plan.strategies[i].total_bytes;
  };
  const Plan nodes = plan_of(2, "auto"), one_node = plan_of(4, "auto");
  EXPECT_EQ(besides(nodes, 3), NcclOptions{}.scratch_bytes);
  EXPECT_NE(plan_table(nodes).find("  zero3 needs 67.1 MB more, for"), std::string::npos);
  EXPECT_EQ(nodes.reserve_bytes, one_node.reserve_bytes);
  for (const size_t i : {0, 1, 2}) EXPECT_EQ(besides(nodes, i), 0) << kStrategies[i];
  EXPECT_EQ(besides(one_node, 3), 0);
  EXPECT_EQ(besides(plan_of(2, "mpi"), 3), 0);
  EXPECT_EQ(besides(plan_of(1, "auto"), 3), 0) << "nobody to send to";
  const auto warns = [](const Plan& plan) {
    return std::any_of(plan.warnings.begin(), plan.warnings.end(), [](const std::string& text) {
      return text.find("planned as one node") != text.npos;
    });
  };
  EXPECT_TRUE(warns(plan_of(4, "auto", false)));
  EXPECT_FALSE(warns(one_node));
  EXPECT_FALSE(warns(nodes));

  const StrategyPlan& planned = nodes.strategies[3];
  Job job = job_of(4, kTwoRows, {{"parallel.strategy", "zero3"}, {"parallel.shard_group", "node"}});
  SilentCollectives world(3, 4), node(1, 2);
  RecordingBackend backend(nodes.machine.dtype, nodes.machine.row_multiple);
  const Trainer trainer(job, backend, {world, node}, planned.policy, planned.passes_together,
                        planned.layers_held);
  for (const MemoryClass m : kMemoryClasses)
    EXPECT_EQ(planned.bytes_of(m), trainer.arena().bytes(m)) << name_of(m);
  EXPECT_GT(planned.bytes_of(MemoryClass::base),
            one_node.strategies[3].bytes_of(MemoryClass::base));
  PlanMachine cpu = kCpu;  // where layers are gathered in each step
  const int64_t gathered = plan_strategy(job, "zero3", cpu).sent.all_gather;
  cpu.ranks_on_node = 2;
  EXPECT_LT(plan_strategy(job, "zero3", cpu).sent.all_gather, gathered);

  PlanMachine machine = nodes.machine;
  machine.budget = planned.needed_bytes;
  EXPECT_EQ(plan_strategy(job, "zero3", machine).total_bytes, planned.total_bytes);
  machine.budget -= 1;
  EXPECT_LT(plan_strategy(job, "zero3", machine).total_bytes, planned.total_bytes);
}

TEST(Plan, WarnsOfAStrategyThatCostsMoreThanItSaves) {
  const auto warning = [](const char* strategy, int ranks, int64_t budget, int n_nodes = 1) {
    Job job = job_of(ranks, kTwoRows, {{"parallel.strategy", strategy}});
    const int64_t rows = job.global_batch_size;
    const std::string text = strategy_warning(job, {DType::f32, 1, budget}, n_nodes, 1e12);
    EXPECT_EQ(job.global_batch_size, rows);
    EXPECT_EQ(job.config.parallel.strategy, strategy);
    EXPECT_EQ(text.find('\n'), text.npos);
    return text;
  };
  EXPECT_EQ(warning("ddp", 4, kPlenty), "");
  EXPECT_EQ(warning("zero2", 1, kPlenty), "zero2 on one rank saves nothing: it shards over ranks");
  EXPECT_NE(warning("zero1", 4, kPlenty).find("zero1 saves 1.3 MB a rank"), std::string::npos)
      << warning("zero1", 4, kPlenty);
  // One pass a step: forward and backward gather 2 of 4 layers each, and adapters.
  Job job = job_of(4, kTwoRows);
  const std::string gathered =
      fmt::format("{:.1f} MB a pass",
                  1e-6 * static_cast<double>(plan_strategy(job, "zero3", kCpu).sent.all_gather));
  const std::string found = warning("zero3", 4, kPlenty, 2);
  EXPECT_NE(found.find("zero3 gathers " + gathered), std::string::npos) << found;
  EXPECT_NE(found.find("at 50 GB/s (400 Gbit/s network) beside"), std::string::npos) << found;
  EXPECT_NE(found.find("ddp fits too, 40.2 MB of"), std::string::npos) << found;
  // In nodes the base does not cross the network.
  Job in_nodes =
      job_of(4, kTwoRows, {{"parallel.strategy", "zero3"}, {"parallel.shard_group", "node"}});
  const std::string near = strategy_warning(in_nodes, {DType::f32, 1, kPlenty}, 2, 1e12);
  EXPECT_NE(near.find("at 300 GB/s (NVLink) beside"), std::string::npos) << near;
  // Full fine-tuning is what zero1 and zero2 are for.
  Job full = job_of(4, kTwoRows, {{"train.method", "full"}, {"parallel.strategy", "zero2"}});
  EXPECT_EQ(strategy_warning(full, kCpu, 1, 1e12), "");
}

}  // namespace
}  // namespace utrain
