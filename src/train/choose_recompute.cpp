#include "train/choose_recompute.h"

#include <algorithm>

#include "train/trainer.h"

namespace utrain {

namespace {

// The end of a list of what helps on a GPU.
std::string more_gpu_memory(const Job& job) {
  const Config& c = job.config;
  std::string text;
  if (c.run.gpu_memory_gb > 0.0) text += ", raise run.gpu_memory_gb";
  if (!c.parallel.offload_params && !job.is_full())
    text += ", set parallel.offload_params = true to keep the base in host memory";
  if (!c.parallel.offload_optimizer && job.is_full())
    text += ", set parallel.offload_optimizer = true to keep the optimizer in host memory";
  if (c.parallel.shard_group == "node") text += ", set parallel.shard_group = \"world\"";
  if (c.parallel.strategy != "zero3") text += ", set parallel.strategy = \"zero3\" on several GPUs";
  return text + ", or take a GPU with more memory";
}

// Likewise on the CPU, where offloading only takes more of the same memory.
std::string more_host_memory(const Job& job) {
  const Config::Parallel& p = job.config.parallel;
  std::string text;
  if (p.offload_params) text += ", set parallel.offload_params = false";
  if (p.offload_optimizer) text += ", set parallel.offload_optimizer = false";
  if (job.ranks > 1 && p.strategy != "zero3") text += ", set parallel.strategy = \"zero3\"";
  if (job.ranks > 1) text += ", run fewer ranks on a node";
  return text + ", or ask for a node with more memory";
}

}  // namespace

std::vector<Recompute> wanted_recompute(const Job& job, Backend& backend, const Groups& groups,
                                        const MemoryBudget& budget) {
  const int64_t L = job.architecture.n_layers;
  const auto fits = [&](const std::vector<Recompute>& policy) {
    return budget.holds(Trainer(job, backend, groups, policy).arena());
  };
  // k of the L layers compute again with `some`, the others with `rest`.
  const auto mixed = [&](Recompute some, Recompute rest, int64_t k) {
    std::vector<Recompute> policy(static_cast<size_t>(L), rest);
    std::fill_n(policy.begin(), k, some);
    return policy;
  };
  const auto uniform = [&](Recompute all) {
    return std::vector<Recompute>(static_cast<size_t>(L), all);
  };
  // The fewest layers that fit; more of them never take more memory. L where none is enough.
  const auto fewest = [&](Recompute some, Recompute rest) {
    int64_t low = 1, high = L;
    while (low < high) {
      const int64_t k = (low + high) / 2;
      if (fits(mixed(some, rest, k)))
        high = k;
      else
        low = k + 1;
    }
    return mixed(some, rest, low);
  };
  const std::string& wish = job.config.train.recompute;
  std::vector<Recompute> policy = uniform(wish == "mlp"       ? Recompute::mlp
                                          : wish == "block"   ? Recompute::block
                                          : wish == "offload" ? Recompute::offload
                                                              : Recompute::keep);
  if (wish == "auto" && !fits(policy)) {
    policy = fewest(Recompute::mlp, Recompute::keep);
    if (!fits(policy)) policy = fewest(Recompute::block, Recompute::mlp);
  }
  return policy;
}

std::vector<Recompute> choose_recompute(const Job& job, Backend& backend, const Groups& groups,
                                        const MemoryBudget& budget) {
  const std::vector<Recompute> policy = wanted_recompute(job, backend, groups, budget);
  const Trainer chosen(job, backend, groups, policy);
  if (budget.holds(chosen.arena())) return policy;
  const std::string found = text_of_shortage(budget.needed(chosen.arena()), budget.bytes);
  if (const int64_t base = chosen.arena().bytes(MemoryClass::base); base > budget.bytes) {
    fail(ExitCode::usage, "memory",
         fmt::format("{}: the base model alone takes {:.2f} GB", found,
                     static_cast<double>(base) * 1e-9),
         "take a smaller model" +
             (budget.is_of_host ? more_host_memory(job) : more_gpu_memory(job)));
  }
  const std::string& wish = job.config.train.recompute;
  std::string first;
  if (wish == "none" || wish == "mlp" || (wish == "offload" && budget.is_of_host))
    first = "set train.recompute = \"block\" or \"auto\", ";
  else if (wish != "offload" && !budget.is_of_host)
    first = "set train.recompute = \"offload\", ";
  fail(ExitCode::usage, "memory", found,
       first + "lower train.micro_batch_size or data.seq_len" +
           (budget.is_of_host ? more_host_memory(job) : more_gpu_memory(job)));
}

}  // namespace utrain
