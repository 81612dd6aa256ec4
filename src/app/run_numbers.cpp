#include "app/run_numbers.h"

#include <xxhash.h>

#include <algorithm>
#include <map>

#include "app/version.h"
#include "config/print.h"
#include "core/process.h"
#include "io/model_files.h"

namespace utrain {

namespace {

// Names, shapes and a page of each tensor: another training run changes every page.
uint64_t hash_of_weights(const std::string& model_dir) {
  constexpr int64_t kPage = 4096;
  const ModelFiles files(model_dir);
  XXH64_hash_t hash = 0;
  const auto add = [&](const void* data, int64_t bytes) {
    hash = XXH3_64bits_withSeed(data, static_cast<size_t>(bytes), hash);
  };
  for (const std::string& name : files.names()) {
    const StoredTensor& tensor = *files.find(name);
    const std::string header =
        fmt::format("{} {} {}", name, name_of(tensor.dtype), text_of_shape(tensor.shape));
    add(header.data(), std::ssize(header));
    const int64_t begin = tensor.bytes / 2 / kPage * kPage;
    add(tensor.data + begin, std::min(kPage, tensor.bytes - begin));
  }
  return hash;
}

Json hex(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

Json numbers_of_reals(const std::vector<double>& values) {
  Json array = Json::array();
  for (const double x : values) array.push_back(x);
  return array;
}

Json array_of(std::vector<std::string> names) {
  Json array = Json::array();
  for (std::string& name : names) array.push_back(std::move(name));
  return array;
}

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

Json numbers_of(const Job& job, const Backend& backend) {
  const Config& c = job.config;
  const bool random = c.model.init == "random";
  Json n = Json::object();
  n.set("model",
        random ? fmt::format("{:016x}, random weights", job.model_hash)
               : fmt::format("{:016x} {:016x}", job.model_hash, hash_of_weights(c.model.path)));
  n.set("data", hex(job.train.hash));
  if (job.has_eval()) n.set("eval", hex(job.eval.hash)).set("eval.max_rows", c.eval.max_rows);
  n.set("model.dtype", name_of(backend.rounds_to())).set("train.method", c.train.method);
  if (!job.is_full()) {
    n.set("lora.r", c.lora.r).set("lora.target_modules", array_of(sorted(c.lora.target_modules)));
    n.set("lora.alpha", c.lora.alpha).set("lora.use_rslora", c.lora.use_rslora);
    n.set("lora.dropout", c.lora.dropout);
  }
  n.set("data.seq_len", c.data.seq_len).set("data.packing", c.data.packing);
  n.set("data.shuffle", c.data.shuffle).set("data.too_long", c.data.too_long);
  n.set("train.global_batch_size", job.global_batch_size).set("train.max_steps", job.total_steps);
  n.set("train.lr", c.train.lr).set("train.schedule", c.train.schedule);
  n.set("train.warmup_steps", c.train.warmup_steps).set("train.weight_decay", c.train.weight_decay);
  n.set("train.betas", numbers_of_reals(c.train.betas)).set("train.eps", c.train.eps);
  n.set("train.max_grad_norm", c.train.max_grad_norm).set("train.seed", c.train.seed);
  return n;
}

Json fingerprint_of(const Job& job, const RunFacts& facts, const std::vector<Recompute>& policy) {
  const Config& c = job.config;
  std::string recompute;
  for (const Recompute r : policy) recompute += std::to_string(static_cast<int>(r));
  Json f = Json::object();
  f.set("build", build_identity()).set("ranks", facts.ranks).set("backend", facts.backend);
  f.set("cpu", cpu_model()).set("gpus", array_of(sorted(facts.gpus)));
  f.set("parallel.strategy", c.parallel.strategy);
  f.set("parallel.offload_optimizer", c.parallel.offload_optimizer);
  f.set("train.micro_batch_size", c.train.micro_batch_size).set("recompute", recompute);
  f.set("passes_together", facts.passes_together);
  return f;
}

std::vector<ChangedNumber> changed_numbers(const Json& then, const Json& now) {
  std::vector<ChangedNumber> changed;
  for (const auto& [key, value] : now.as_object()) {
    const Json* old = then.is_object() ? then.find(key) : nullptr;
    if (old != nullptr && to_text(*old) != to_text(value))
      changed.push_back({key, to_text(*old), to_text(value)});
  }
  return changed;
}

}  // namespace utrain
