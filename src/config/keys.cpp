#include "config/keys.h"

#include <fmt/core.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "config/nearest.h"

namespace utrain {
namespace {

template <auto section, auto member>
auto& at(Config& config) {
  return config.*section.*member;
}
template <auto member>
constexpr auto model = &at<&Config::model, member>;
template <auto member>
constexpr auto lora = &at<&Config::lora, member>;
template <auto member>
constexpr auto data = &at<&Config::data, member>;
template <auto member>
constexpr auto train = &at<&Config::train, member>;
template <auto member>
constexpr auto eval = &at<&Config::eval, member>;
template <auto member>
constexpr auto parallel = &at<&Config::parallel, member>;
template <auto member>
constexpr auto checkpoint = &at<&Config::checkpoint, member>;
template <auto member>
constexpr auto log = &at<&Config::log, member>;
template <auto member>
constexpr auto run = &at<&Config::run, member>;

constexpr int64_t kMaxSteps = 1'000'000'000'000;
constexpr int64_t kMaxInteger = std::numeric_limits<int64_t>::max();
constexpr Interval kPositive{.min = 0.0, .open_min = true};
constexpr Interval kNotNegative{.min = 0.0};
constexpr Interval kBelowOne{.min = 0.0, .max = 1.0};

using C = Config;

// Of what a checkpoint remembers: those that its arrays do not depend on.
std::vector<std::string_view> changeable_numbers() {
  return {"model",
          "data",
          "eval",
          "model.dtype",
          "lora.alpha",
          "lora.dropout",
          "lora.use_rslora",
          "data.seq_len",
          "data.packing",
          "data.shuffle",
          "data.too_long",
          "train.global_batch_size",
          "train.max_steps",
          "train.lr",
          "train.schedule",
          "train.warmup_steps",
          "train.weight_decay",
          "train.betas",
          "train.eps",
          "train.max_grad_norm",
          "train.seed",
          "eval.max_rows"};
}

std::vector<Key> make_keys() {
  return {
      // [model]
      {.name = "model.path",
       .kind = Text{model<&C::Model::path>, {}},
       .doc = "Hugging Face directory: config.json, model.safetensors or its sharded index",
       .required = true,
       .must_exist = true,
       .also = "model model_name model_name_or_path base_model"},
      {.name = "model.dtype",
       .kind = Text{model<&C::Model::dtype>, {"auto", "bfloat16", "float16", "float32"}},
       .doc = "what is computed in; auto = bfloat16 where the GPU has it, else float16; float32 on "
              "the CPU",
       .also = "torch_dtype precision"},
      {.name = "model.init",
       .kind = Text{model<&C::Model::init>, {"pretrained", "random"}},
       .doc = "random = config.json alone is enough: benchmarks, pretraining"},
      {.name = "model.quantize",
       .kind = Text{model<&C::Model::quantize>, {"none", "fp8", "nf4"}},
       .doc = "format of the frozen base",
       .also = "quantization load_in_4bit load_in_8bit",
       .not_built = {{"none"}, "set \"none\""}},
      // [lora]
      {.name = "lora.r",
       .kind = Integer{lora<&C::Lora::r>, 1, 4096},
       .doc = "rank of the adapters",
       .from_adapter = true,
       .also = "rank lora_rank"},
      {.name = "lora.alpha",
       .kind = Real{lora<&C::Lora::alpha>, kPositive},
       .doc = "the adapter is scaled by alpha / r",
       .from_adapter = true},
      {.name = "lora.dropout",
       .kind = Real{lora<&C::Lora::dropout>, kBelowOne},
       .doc = "probability that an input of an adapter is dropped while training"},
      {.name = "lora.use_rslora",
       .kind = Boolean{lora<&C::Lora::use_rslora>},
       .doc = "scale by alpha / sqrt(r) instead",
       .from_adapter = true,
       .also = "rslora"},
      {.name = "lora.init_from",
       .kind = Text{lora<&C::Lora::init_from>, {}},
       .doc = "PEFT adapter directory to go on from; r, alpha, use_rslora and target_modules left "
              "unset come from it",
       .must_exist = true,
       .also = "adapter adapter_path"},
      {.name = "lora.target_modules",
       .kind = Names{lora<&C::Lora::target_modules>,
                     {kProjectionNames.begin(), kProjectionNames.end()},
                     "all-linear"},
       .doc = "projections that get an adapter",
       .from_adapter = true},
      // [data]
      {.name = "data.train",
       .kind = Text{data<&C::Data::train>, {}},
       .doc = "token data set to train on (HDF5, as tools/prepare writes it)",
       .required = true,
       .must_exist = true,
       .also = "train_file dataset dataset_path"},
      {.name = "data.eval",
       .kind = Text{data<&C::Data::eval>, {}},
       .doc = "token data set to evaluate on; empty = none",
       .must_exist = true,
       .also = "eval_file validation_file"},
      {.name = "data.seq_len",
       .kind = Integer{data<&C::Data::seq_len>, 1, 1 << 24},
       .doc = "tokens a row holds at most",
       .also = "max_seq_length max_seq_len max_length cutoff_len sequence_len"},
      {.name = "data.packing",
       .kind = Boolean{data<&C::Data::packing>},
       .doc = "several documents share a row; they never see each other",
       .also = "pack sample_packing"},
      {.name = "data.shuffle",
       .kind = Boolean{data<&C::Data::shuffle>},
       .doc = "permute documents and rows by train.seed; false = file order"},
      {.name = "data.too_long",
       .kind = Text{data<&C::Data::too_long>, {"error", "truncate", "drop"}},
       .doc = "what happens to documents longer than seq_len"},
      // [train]
      {.name = "train.method",
       .kind = Text{train<&C::Train::method>, {"lora", "full"}},
       .doc = "train adapters, or all weights"},
      {.name = "train.max_steps",
       .kind = Integer{train<&C::Train::max_steps>, 1, kMaxSteps},
       .doc = "optimizer steps; set this or epochs",
       .also = "steps"},
      {.name = "train.epochs",
       .kind = Real{train<&C::Train::epochs>, kPositive},
       .doc = "passes over the data, fractions too; set this or max_steps",
       .also = "num_train_epochs num_epochs"},
      {.name = "train.global_batch_size",
       .kind = Integer{train<&C::Train::global_batch_size>, 1, 1 << 30},
       .doc = "rows per optimizer step over all ranks; set this or gradient_accumulation_steps",
       .also = "batch_size train_batch_size"},
      {.name = "train.gradient_accumulation_steps",
       .kind = Integer{train<&C::Train::gradient_accumulation_steps>, 1, 1 << 20},
       .doc = "global_batch_size = this * micro_batch_size * ranks",
       .also = "grad_accum_steps grad_accumulation_steps"},
      {.name = "train.micro_batch_size",
       .kind = Integer{train<&C::Train::micro_batch_size>, 1, 1 << 20},
       .doc = "rows per rank and pass",
       .also = "per_device_train_batch_size"},
      {.name = "train.lr",
       .kind = Real{train<&C::Train::lr>, kNotNegative},
       .doc = "highest learning rate",
       .also = "learning_rate"},
      {.name = "train.schedule",
       .kind = Text{train<&C::Train::schedule>, {"linear", "cosine", "constant"}},
       .doc = "learning rate after the warm-up",
       .also = "lr_scheduler_type lr_scheduler lr_schedule"},
      {.name = "train.warmup_steps",
       .kind = Integer{train<&C::Train::warmup_steps>, 0, kMaxSteps},
       .doc = "steps over which the learning rate rises from 0",
       .also = "warmup"},
      {.name = "train.weight_decay",
       .kind = Real{train<&C::Train::weight_decay>, kNotNegative},
       .doc = "AdamW's decay, times the learning rate per step"},
      {.name = "train.betas",
       .kind = Reals{train<&C::Train::betas>, 2, kBelowOne},
       .doc = "AdamW's decay rates of the first and second moment",
       .also = "adam_beta1 adam_beta2 adam_betas"},
      {.name = "train.eps",
       .kind = Real{train<&C::Train::eps>, kPositive},
       .doc = "AdamW's epsilon, added to the root of the second moment",
       .also = "adam_epsilon adam_eps epsilon"},
      {.name = "train.max_grad_norm",
       .kind = Real{train<&C::Train::max_grad_norm>, kNotNegative},
       .doc = "gradients are scaled down to this norm; 0 = no clipping",
       .also = "clip_grad_norm gradient_clipping grad_clip"},
      {.name = "train.seed",
       .kind = Integer{train<&C::Train::seed>, 0, kMaxInteger},
       .doc = "of shuffling, initial adapters and dropout",
       .also = "random_seed"},
      {.name = "train.recompute",
       .kind = Text{train<&C::Train::recompute>, {"auto", "none", "mlp", "block", "offload"}},
       .doc = "activations computed again in the backward pass to save memory; auto = only what is "
              "needed; offload = as block, its inputs in host memory",
       .also = "gradient_checkpointing activation_checkpointing"},
      // [eval]
      {.name = "eval.every",
       .kind = Integer{eval<&C::Eval::every>, 0, kMaxSteps},
       .doc = "steps between evaluations; 0 = only after the last step",
       .also = "eval_steps"},
      {.name = "eval.max_rows",
       .kind = Integer{eval<&C::Eval::max_rows>, 0, kMaxSteps},
       .doc = "rows to evaluate; 0 = all",
       .also = "max_eval_samples"},
      // [parallel]
      {.name = "parallel.strategy",
       .kind = Text{parallel<&C::Parallel::strategy>, {"ddp", "zero1", "zero2", "zero3"}},
       .doc = "what each rank holds: all, or its share of optimizer state, gradients, weights"},
      {.name = "parallel.shard_group",
       .kind = Text{parallel<&C::Parallel::shard_group>, {"world", "node"}},
       .doc = "ranks over which zero3 shards the frozen base; node = those of one node, so that no "
              "weight of it crosses the network"},
      {.name = "parallel.offload_optimizer",
       .kind = Boolean{parallel<&C::Parallel::offload_optimizer>},
       .doc = "optimizer state in host memory; AdamW runs there"},
      {.name = "parallel.offload_params",
       .kind = Boolean{parallel<&C::Parallel::offload_params>},
       .doc = "frozen base in host memory, copied to the GPU layer by layer"},
      {.name = "parallel.collectives",
       .kind = Text{parallel<&C::Parallel::collectives>, {"auto", "nccl", "mpi"}},
       .doc = "auto = nccl on GPUs; mpi goes through host memory, ranks may then share a GPU"},
      // [checkpoint]
      {.name = "checkpoint.every",
       .kind = Integer{checkpoint<&C::Checkpoint::every>, 0, kMaxSteps},
       .doc = "steps between checkpoints; 0 = only when the run is stopped",
       .also = "save_steps save_every"},
      {.name = "checkpoint.keep",
       .kind = Integer{checkpoint<&C::Checkpoint::keep>, 1, 1 << 20},
       .doc = "newest checkpoints that stay; the one with the lowest eval loss stays too",
       .also = "save_total_limit"},
      {.name = "checkpoint.resume",
       .kind = Text{checkpoint<&C::Checkpoint::resume>, {}},
       .doc = "auto = from the newest good checkpoint, never, or the path of one",
       .also = "resume_from_checkpoint"},
      {.name = "checkpoint.allow_changes",
       .kind = Names{checkpoint<&C::Checkpoint::allow_changes>, changeable_numbers(), "all", true},
       .doc = "what may differ from the checkpoint that the run goes on from; model, data and eval "
              "are their contents"},
      // [log]
      {.name = "log.every",
       .kind = Integer{log<&C::Log::every>, 1, kMaxSteps},
       .doc =
           "steps between log lines; not set: on a terminal each step, above a bar, in a file one "
           "line in 10 s at most; metrics.jsonl has every step",
       .also = "logging_steps log_interval"},
      {.name = "log.tensorboard",
       .kind = Boolean{log<&C::Log::tensorboard>},
       .doc = "write TensorBoard files too",
       .not_built = {{}, "set false; metrics.jsonl has the same numbers"}},
      // [run]
      {.name = "run.dir",
       .kind = Text{run<&C::Run::dir>, {}},
       .doc = "run directory: metrics.jsonl, adapter/, summary.json; made when it is missing",
       .required = true,
       .also = "output_dir run_dir out_dir"},
      {.name = "run.backend",
       .kind = Text{run<&C::Run::backend>, {"auto", "cpu", "cuda"}},
       .doc = "what computes; auto = the GPU where there is one",
       .also = "device"},
      {.name = "run.overwrite",
       .kind = Boolean{run<&C::Run::overwrite>},
       .doc = "what a finished run left in the directory is replaced",
       .also = "overwrite_output_dir"},
      {.name = "run.gpu_memory_gb",
       .kind = Real{run<&C::Run::gpu_memory_gb>, {.min = 0.0, .max = 1e6}},
       .doc = "GB of GPU memory a rank may take; 0 = what is free"},
      {.name = "run.hang_timeout",
       .kind = Integer{run<&C::Run::hang_timeout>, 0, 1 << 30},
       .doc =
           "seconds without progress after which the run is given up; 0 = 600, in steps at least "
           "60 and 10 x the slowest one"},
      {.name = "run.max_hours",
       .kind = Real{run<&C::Run::max_hours>, kNotNegative},
       .doc = "hours from its start after which the run saves and stops; 0 = 5 minutes before the "
              "Slurm job ends, where that is known"},
  };
}

bool has_word(std::string_view words, std::string_view word) {
  return !word.empty() && word.find(' ') == word.npos &&
         fmt::format(" {} ", words).find(fmt::format(" {} ", word)) != std::string::npos;
}

}  // namespace

bool Interval::contains(double x) const {
  return std::isfinite(x) && (open_min ? x > min : x >= min) && (max == 0.0 || x < max);
}

const std::vector<Key>& keys() {
  static const std::vector<Key> table = make_keys();
  return table;
}

const Key* find_key(std::string_view name) {
  for (const Key& key : keys())
    if (key.name == name) return &key;
  return nullptr;
}

std::vector<std::string_view> section_names() {
  std::vector<std::string_view> names;
  for (const Key& key : keys())
    if (names.empty() || names.back() != key.section()) names.push_back(key.section());
  return names;
}

const std::vector<Exclusive>& exclusive_keys() {
  static const std::vector<Exclusive> pairs = {
      {"train.max_steps", "train.epochs", true},
      {"train.global_batch_size", "train.gradient_accumulation_steps", false}};
  return pairs;
}

std::string_view exclusive_with(std::string_view name) {
  for (const Exclusive& pair : exclusive_keys()) {
    if (name == pair.first) return pair.second;
    if (name == pair.second) return pair.first;
  }
  return "";
}

std::string nearest_key(std::string_view section, std::string_view key) {
  std::string_view best;
  std::tuple<size_t, size_t> smallest{kMaxInteger, 0};
  for (const Key& candidate : keys()) {
    const std::string joined = fmt::format("{}_{}", candidate.section(), candidate.key());
    const bool same_name = key == candidate.key() || key == joined || has_word(candidate.also, key);
    size_t distance = edit_distance(key, candidate.key());
    if (!same_name && !is_near(distance, key, candidate.key())) {
      distance = edit_distance(key, joined);
      if (!is_near(distance, key, joined)) continue;
    }
    // A right name in the wrong section comes before a near name in the right one.
    const size_t away = section != candidate.section();
    const std::tuple score{same_name ? 0 : distance + away,
                           edit_distance(section, candidate.section())};
    if (score < smallest) smallest = score, best = candidate.name;
  }
  return std::string(best);
}

}  // namespace utrain
