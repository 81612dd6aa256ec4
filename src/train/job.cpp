#include "train/job.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/finite.h"
#include "data/tokenizer.h"
#include "io/file.h"
#include "io/peft_adapter.h"
#include "model/weights.h"

namespace utrain {

namespace {

constexpr double kMostSteps = 1e12;  // as many as train.max_steps may say
constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();  // of a pass, as kernels count

// r, alpha, rslora and targets of a run that goes on from an adapter are the adapter's.
void take_from_adapter(Config& config) {
  const AdapterConfig adapter = read_adapter_config(config.lora.init_from);
  Config::Lora& lora = config.lora;
  const auto take = [&](const char* key, auto& ours, const auto& theirs, const std::string& found) {
    if (config.is_given(key) && ours != theirs) {
      fail(ExitCode::usage, key,
           fmt::format("differs from the adapter in {}, which has {}", lora.init_from, found),
           "leave the key out, or start a new adapter without lora.init_from");
    }
    ours = theirs;
  };
  take("lora.r", lora.r, adapter.r, std::to_string(adapter.r));
  take("lora.alpha", lora.alpha, adapter.alpha, fmt::format("{}", adapter.alpha));
  take("lora.use_rslora", lora.use_rslora, adapter.use_rslora,
       adapter.use_rslora ? "true" : "false");
  std::vector<std::string> ours = lora.target_modules, theirs = adapter.target_modules;
  std::sort(ours.begin(), ours.end());
  std::sort(theirs.begin(), theirs.end());
  if (config.is_given("lora.target_modules") && ours != theirs) {
    fail(ExitCode::usage, "lora.target_modules",
         fmt::format("differs from the adapter in {}", lora.init_from),
         "leave the key out, or start a new adapter without lora.init_from");
  }
  lora.target_modules = adapter.target_modules;
}

LoraOptions lora_options(const Config::Lora& lora) {
  LoraOptions options{lora.r, lora.alpha, lora.use_rslora, {}};
  for (const Projection p : kProjections) {
    const auto& names = lora.target_modules;
    if (std::find(names.begin(), names.end(), name_of(p)) != names.end())
      options.targets.push_back(p);
  }
  return options;
}

// Full fine-tuning makes no adapter: a key that says how would be ignored.
void check_no_lora_keys(const Config& config) {
  for (const std::string& key : config.given) {
    if (!key.starts_with("lora.")) continue;
    fail(ExitCode::usage, key, "found beside train.method = \"full\", which has no adapters",
         "leave the section [lora] out, or set train.method = \"lora\"");
  }
}

void check_trained_stays(const Config& config) {
  constexpr const char* kFound = "found beside train.method = \"full\", where no weight is frozen";
  if (config.parallel.offload_params) {
    fail(ExitCode::usage, "parallel.offload_params", kFound,
         "set parallel.offload_optimizer = true instead, or train.method = \"lora\"");
  }
  if (config.parallel.strategy == "zero3" && config.parallel.shard_group == "node") {
    fail(ExitCode::usage, "parallel.shard_group", kFound,
         "set \"world\": what is trained is sharded over all ranks; or train.method = \"lora\"");
  }
}

void warn_of_group(Job& job) {
  const Config::Parallel& p = job.config.parallel;
  if (p.shard_group == "world" || p.strategy == "zero3") return;
  job.warnings.push_back(
      fmt::format("parallel.shard_group = \"{}\" changes nothing: with parallel.strategy = \"{}\" "
                  "every rank holds the base whole",
                  p.shard_group, p.strategy));
}

std::vector<float> read_adapter(const std::string& dir, const TrainableLayout& layout) {
  const SafetensorsFile file = open_adapter_weights(dir);
  // All names and shapes before any memory: what config.json claims is bounded by the file.
  for (const Trainable& t : layout.tensors()) {
    const StoredTensor* stored = file.find(t.name);
    if (stored == nullptr) {
      fail(ExitCode::bad_file, file.path(), fmt::format("no tensor {}", t.name),
           "the adapter must cover the same layers and projections as the model; check "
           "lora.init_from");
    }
    if (stored->shape != std::vector<int64_t>{t.rows, t.cols} || !is_readable(stored->dtype)) {
      fail(ExitCode::bad_file, file.path(),
           fmt::format("{} is {} {}, wanted floats of shape [{}, {}]", t.name,
                       name_of(stored->dtype), text_of_shape(stored->shape), t.rows, t.cols),
           "the adapter belongs to another model; check lora.init_from");
    }
  }
  if (file.tensors().size() != layout.tensors().size()) {
    fail(ExitCode::bad_file, file.path(),
         fmt::format("{} tensors, {} belong to this model and target_modules",
                     file.tensors().size(), layout.tensors().size()),
         "the adapter has parts that would be lost; check lora.init_from");
  }
  std::vector<float> flat(static_cast<size_t>(layout.n_elem()), 0.0f);
  for (const Trainable& t : layout.tensors()) {
    float* out = &flat[static_cast<size_t>(t.offset)];
    read_elements(*file.find(t.name), 0, t.rows * t.cols, out);
    if (!are_finite({out, static_cast<size_t>(t.n_elem())})) {
      fail(ExitCode::bad_file, file.path(),
           fmt::format("{} holds numbers that are not finite", t.name), "take another adapter");
    }
  }
  return flat;
}

// Weights are too large to be read for this; open_pretrained checks their names and shapes.
uint64_t hash_of_model(const std::string& model_dir, const std::vector<float>& adapter) {
  const std::string config = read_text_file(model_dir + "/config.json", kMaxConfigBytes);
  return XXH3_64bits_withSeed(adapter.data(), adapter.size() * sizeof(float),
                              XXH3_64bits(config.data(), config.size()));
}

RowOptions row_options(const Config& config, bool training) {
  RowOptions options;
  options.seq_len = config.data.seq_len;
  options.packing = config.data.packing;
  options.shuffle = training && config.data.shuffle;
  options.too_long = config.data.too_long;
  options.seed = static_cast<uint64_t>(config.train.seed);
  return options;
}

int64_t longest_row_of(const Rows& rows) {
  int64_t longest = 0;
  for (const auto& row : rows.rows) {
    int64_t n = 0;
    for (const Piece& piece : row) n += piece.length;
    longest = std::max(longest, n);
  }
  return longest;
}

int64_t longest_document_of(const Rows& rows) {
  int64_t longest = 0;
  for (const auto& row : rows.rows) {
    for (const Piece& piece : row) longest = std::max(longest, piece.length);
  }
  return longest;
}

void count_steps(Job& job) {
  const int ranks = job.ranks;
  const Config::Train& t = job.config.train;
  job.global_batch_size = t.gradient_accumulation_steps > 0
                              ? t.gradient_accumulation_steps * t.micro_batch_size * ranks
                              : t.global_batch_size;
  const int64_t rows = job.train_rows.n_rows();
  job.steps_per_epoch = (rows + job.global_batch_size - 1) / job.global_batch_size;
  job.total_steps = t.max_steps;
  if (t.max_steps == 0) {
    const double steps = std::ceil(t.epochs * static_cast<double>(job.steps_per_epoch));
    if (steps > kMostSteps) {
      fail(ExitCode::usage, "train.epochs",
           fmt::format("{} epochs of {} steps found, at most {:.0e} steps wanted", t.epochs,
                       job.steps_per_epoch, kMostSteps),
           "lower it");
    }
    job.total_steps = static_cast<int64_t>(steps);
  }
  if (t.warmup_steps >= job.total_steps) {
    job.warnings.push_back(fmt::format(
        "train.warmup_steps = {} is not below the {} step{} of the run: lr stays below {}",
        t.warmup_steps, job.total_steps, job.total_steps == 1 ? "" : "s", t.lr));
  }
  if (job.global_batch_size < ranks) {
    job.warnings.push_back(fmt::format(
        "{} row{} per step on {} ranks: {} of them ha{} nothing to do", job.global_batch_size,
        job.global_batch_size == 1 ? "" : "s", ranks, ranks - job.global_batch_size,
        ranks - job.global_batch_size == 1 ? "s" : "ve"));
  }
}

void warn_of_dropped(Job& job, const char* name, const Rows& rows) {
  const auto warn = [&](int64_t n, const char* what) {
    if (n > 0) job.warnings.push_back(fmt::format("{}: {} documents {}", name, n, what));
  };
  warn(rows.n_too_long_dropped, "longer than data.seq_len dropped");
  warn(rows.n_truncated, "cut to data.seq_len");
  warn(rows.n_without_target, "without a target dropped");
}

}  // namespace

BatchPlan Job::plan() const {
  return BatchPlan(train, train_rows, global_batch_size, config.data.shuffle,
                   static_cast<uint64_t>(config.train.seed));
}

double Job::dropout() const {
  return is_full() ? 0.0 : config.lora.dropout;
}

ModelState::Options Job::model_options(int64_t layers_held) const {
  const std::string& name = config.parallel.strategy;
  const Strategy strategy = name == "zero1"   ? Strategy::zero1
                            : name == "zero2" ? Strategy::zero2
                            : name == "zero3" ? Strategy::zero3
                                              : Strategy::ddp;
  return {is_full() ? Method::full : Method::lora,
          lora,
          strategy,
          config.parallel.offload_optimizer,
          config.parallel.offload_params,
          layers_held};
}

int64_t Job::pass_capacity() const {
  const auto capacity = [&](const Rows& rows, int64_t rows_together) {
    const int64_t of_a_rank = (rows_together + ranks - 1) / ranks;
    return longest_row_of(rows) * std::min(config.train.micro_batch_size, of_a_rank);
  };
  return std::max(capacity(train_rows, std::min(global_batch_size, train_rows.n_rows())),
                  capacity(eval_rows, eval_rows.n_rows()));
}

int64_t Job::longest_document() const {
  return std::max(longest_document_of(train_rows), longest_document_of(eval_rows));
}

Job read_job(const Config& config, int ranks) {
  Job job;
  job.config = config;
  job.ranks = ranks;
  job.architecture = read_architecture(config.model.path);
  if (job.is_full()) {
    check_no_lora_keys(config);
    check_trained_stays(config);
  }
  if (!config.lora.init_from.empty()) take_from_adapter(job.config);
  job.lora = lora_options(job.config.lora);
  if (!config.lora.init_from.empty()) {
    job.adapter = read_adapter(config.lora.init_from, lora_layout(job.architecture, job.lora));
  }
  job.model_hash = hash_of_model(config.model.path, job.adapter);
  // Names and shapes of the weights are part of the check, their values are not.
  if (config.model.init == "pretrained") open_pretrained(config.model.path, job.architecture);
  job.train = read_token_data_set(config.data.train, job.architecture.vocab_size);
  check_tokenizer(job.train, config.model.path);
  job.train_rows = make_rows(job.train, row_options(job.config, true));
  warn_of_dropped(job, "data.train", job.train_rows);
  if (job.has_eval()) {
    job.eval = read_token_data_set(config.data.eval, job.architecture.vocab_size);
    check_tokenizer(job.eval, config.model.path);
    job.eval_rows = make_rows(job.eval, row_options(job.config, false));
    warn_of_dropped(job, "data.eval", job.eval_rows);
    if (config.eval.max_rows > 0) keep_first_rows(job.eval_rows, job.eval, config.eval.max_rows);
  } else if (config.eval.every > 0) {
    job.warnings.push_back("eval.every is set but data.eval is not: nothing is evaluated");
  }
  count_steps(job);
  warn_of_group(job);
  if (job.pass_capacity() > kMostRows) {
    fail(ExitCode::usage, "train.micro_batch_size",
         fmt::format("{} rows of up to data.seq_len tokens are a pass of {} tokens, at most {} "
                     "wanted",
                     job.config.train.micro_batch_size, job.pass_capacity(), kMostRows),
         "lower it");
  }
  if (job.longest_document() > job.architecture.max_position_embeddings) {
    job.warnings.push_back(
        fmt::format("documents of up to {} tokens, the model was made for {} positions",
                    job.longest_document(), job.architecture.max_position_embeddings));
  }
  return job;
}

}  // namespace utrain
