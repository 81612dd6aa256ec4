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

}  // namespace

std::vector<Recompute> wanted_recompute(const Job& job, Backend& backend, const Groups& groups,
                                        int64_t budget) {
  const int64_t L = job.architecture.n_layers;
  const auto bytes_of = [&](const std::vector<Recompute>& policy) {
    return Trainer(job, backend, groups, policy).arena().bytes();
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
      if (bytes_of(mixed(some, rest, k)) <= budget)
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
  if (wish == "auto" && bytes_of(policy) > budget) {
    policy = fewest(Recompute::mlp, Recompute::keep);
    if (bytes_of(policy) > budget) policy = fewest(Recompute::block, Recompute::mlp);
  }
  return policy;
}

std::vector<Recompute> choose_recompute(const Job& job, Backend& backend, const Groups& groups,
                                        int64_t budget) {
  const std::vector<Recompute> policy = wanted_recompute(job, backend, groups, budget);
  const std::string& wish = job.config.train.recompute;
  const Trainer chosen(job, backend, groups, policy);
  const int64_t needed = chosen.arena().bytes();
  if (needed > budget) {
    const std::string found =
        fmt::format("{:.2f} GB needed on each rank, {:.2f} GB free for it",
                    static_cast<double>(needed) * 1e-9, static_cast<double>(budget) * 1e-9);
    const bool gpu = backend.name() == "cuda";
    if (const int64_t base = chosen.arena().bytes(MemoryClass::base); base > budget) {
      fail(ExitCode::usage, "memory",
           fmt::format("{}: the base model alone takes {:.2f} GB", found,
                       static_cast<double>(base) * 1e-9),
           gpu ? "take a smaller model" + more_gpu_memory(job)
               : "take a smaller model, run fewer ranks on a node, or a node with more memory");
    }
    std::string first;
    if (wish == "none" || wish == "mlp")
      first = "set train.recompute = \"block\" or \"auto\", ";
    else if (wish != "offload" && gpu)  // on the CPU it is the same memory
      first = "set train.recompute = \"offload\", ";
    fail(ExitCode::usage, "memory", found,
         first + "lower train.micro_batch_size or data.seq_len" +
             (gpu ? more_gpu_memory(job) : ", or run fewer ranks on a node"));
  }
  return policy;
}

}  // namespace utrain
