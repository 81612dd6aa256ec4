#include "train/trainer.h"

#include <algorithm>

#include "core/convert.h"
#include "core/pieces.h"
#include "model/flops.h"
#include "train/schedule.h"

namespace utrain {

namespace {

// Tells of every piece that is read.
class ToldSource : public WeightSource {
 public:
  ToldSource(const WeightSource& source, const std::function<void()>& tell)
      : source_(source), tell_(tell) {}
  void read(const std::string& name, int64_t first, int64_t n, DType dtype,
            void* out) const override {
    source_.read(name, first, n, dtype, out);
    tell_();
  }
  void prefetch(const std::string& name, int64_t first, int64_t n) const override {
    source_.prefetch(name, first, n);
  }

 private:
  const WeightSource& source_;
  const std::function<void()>& tell_;
};

}  // namespace

Trainer::Trainer(const Job& job, Backend& backend, const Groups& groups,
                 std::vector<Recompute> policy, int64_t passes_together, int64_t layers_held)
    : job_(job),
      backend_(backend),
      groups_(groups),
      collectives_(groups.world),
      passes_together_(static_cast<size_t>(passes_together)),
      state_(job.architecture, job.model_options(layers_held), backend, groups, arena_),
      activations_(job.architecture, state_.adapters(), backend, job.pass_capacity(),
                   std::move(policy), arena_, passes_together),
      model_(job.architecture, state_.parts(), activations_, backend, arena_,
             {job.longest_document(), job.dropout()}),
      optimizer_(job.config.train, state_.trainables(), backend, arena_),
      replicas_(backend, arena_),
      device_pass_(backend, arena_, job.pass_capacity(), passes_together),
      copy_(state_.layout(), state_.trainables(), collectives_, backend, arena_),
      loss_id_(arena_.declare("loss", backend.loss_dtype(), 1, 1, MemoryClass::workspace)) {}

void Trainer::place() {
  plan_.emplace(job_.plan());
  if (arena_.host_bytes() > 0) host_memory_ = backend_.allocate_host(arena_.host_bytes());
  arena_.place(backend_.allocate(arena_.bytes()), host_memory_.get());
  state_.bind(arena_);
  activations_.bind(arena_);
  model_.bind(arena_);
  optimizer_.bind(arena_);
  replicas_.bind(arena_, state_.replicas());
  device_pass_.bind(arena_);
  copy_.bind(arena_);
  loss_ = arena_[loss_id_];
}

void Trainer::load() {
  place();
  const auto seed = static_cast<uint64_t>(job_.config.train.seed);
  const auto source = job_.config.model.init == "random"
                          ? random_weights(job_.architecture, seed)
                          : open_pretrained(job_.config.model.path, job_.architecture);
  state_.load(ToldSource(*source, progress_));
  if (job_.is_full()) return;
  std::vector<float> flat = job_.adapter;
  if (flat.empty()) {
    flat.resize(static_cast<size_t>(state_.layout().n_elem()));
    init_trainables(state_.layout(), seed, flat.data());
  }
  state_.set_adapters(flat.data());
}

void Trainer::restore(const Checkpoint& checkpoint,
                      const std::array<double, kStepStates>& optimizer) {
  ASSERT(checkpoint.n_elem() == state_.layout().n_elem());
  Trainables& trainables = state_.trainables();
  constexpr int64_t kPiece = 4 * kPieceElems;  // a file is opened for each
  std::vector<float> p, m, v;
  for (int64_t u = 0; u < trainables.n_units(); ++u) {
    const int64_t begin =
        state_.layout().unit_begin()[static_cast<size_t>(u)] + trainables.own_begin(u);
    for_pieces(
        trainables.own_elems(u),
        [&](int64_t first, int64_t n) {
          const Slice piece = {begin + first, n};
          for (std::vector<float>* values : {&p, &m, &v}) values->resize(static_cast<size_t>(n));
          checkpoint.read(piece, p.data(), m.data(), v.data());
          trainables.set_parameters(u, first, p);
          trainables.set_moments(u, first, m, v);
        },
        kPiece);
  }
  optimizer_.set_state(optimizer);
}

void Trainer::loaded() {
  state_.loaded();
  replicas_.loaded();
}

std::vector<StepStats> Trainer::train_step(int64_t step) {
  const Config::Train& options = job_.config.train;
  if (!exposed_outside_) exposed_outside_ = groups_.exposed_seconds();
  StepUnderWay now;
  now.start = backend_.moment();

  // 1. The rows of this step; the loss is the mean over ALL their targets, on all ranks.
  const BatchPlan::Step batch = plan_->step(step);

  // 2. Forward and backward of this rank's rows in passes; gradients and the loss accumulate.
  // Layers that are done with are summed over ranks, in rank order, meanwhile.
  accumulate_gradients(batch, optimizer_.loss_scale());
  now.accumulated = backend_.moment();

  // 3. The rest of that sum.
  state_.trainables().finish_gradients();
  collectives_.all_reduce_sum(loss_);
  now.reduced = backend_.moment();

  // 4. Clip by the global norm, then AdamW. A step with bad numbers changes nothing but its place
  // in the schedule.
  const double lr =
      options.lr * schedule_factor(options.schedule, step, job_.total_steps, options.warmup_steps);
  copy_.keep();
  optimizer_.step(loss_, lr);
  now.end = backend_.moment();

  // 5. What the device found is read when it is there; it goes on meanwhile.
  now.state = optimizer_.state_begin();
  if (step % kReplicasEvery == 0) now.replicas = replicas_.begin();
  last_step_ = now.stats.step = step;
  now.stats.epoch = static_cast<double>(step) / static_cast<double>(job_.steps_per_epoch);
  now.stats.lr = lr;
  now.stats.target_tokens = batch.n_targets;
  now.stats.tokens = batch.n_tokens;
  now.stats.model_flops = flops_of(batch);
  under_way_.push_back(now);
  return collect(backend_.is_asynchronous() ? 1 : 0);
}

std::vector<StepStats> Trainer::finish_steps() {
  state_.trainables().finish_update();
  if (!under_way_.empty()) under_way_.back().end = backend_.moment();
  return collect(0);
}

std::string Trainer::replicas() {
  return replicas_.end(replicas_.begin());
}

// Waits until at most under_way steps are.
std::vector<StepStats> Trainer::collect(size_t under_way) {
  std::vector<StepStats> known;
  for (; under_way_.size() > under_way; under_way_.pop_front()) {
    const StepUnderWay& step = under_way_.front();
    StepStats stats = step.stats;
    const auto state = optimizer_.state_end(step.state);
    know(stats.step, state);
    const auto at = [&](StepState i) { return state[static_cast<size_t>(i)]; };
    stats.loss = at(StepState::loss) / static_cast<double>(stats.target_tokens);
    stats.grad_norm = at(StepState::grad_norm);
    stats.skipped = at(StepState::is_finite) == 0.0;
    stats.overflowed = at(StepState::overflowed) != 0.0;
    if (step.replicas) stats.replicas = replicas_.end(*step.replicas);
    stats.seconds = backend_.seconds(step.start, step.end);
    add_seconds(Phase::forward_backward, backend_.seconds(step.start, step.accumulated));
    add_seconds(Phase::reduce, backend_.seconds(step.accumulated, step.reduced));
    add_seconds(Phase::optimizer, backend_.seconds(step.reduced, step.end));
    known.push_back(stats);
  }
  return known;
}

void Trainer::know(int64_t step, const std::array<double, kStepStates>& state) {
  known_ = {step, state, {}};
  if (captured_step_ != step) return;
  captured_ = known_;
  captured_step_.reset();
}

void Trainer::capture() {
  copy_.begin();
  captured_.reset();
  captured_step_.reset();
  if (known_.step == last_step_)
    captured_ = known_;
  else
    captured_step_ = last_step_;
}

std::optional<Captured> Trainer::captured(bool wait) {
  if (!captured_) return std::nullopt;
  if (wait) copy_.wait();
  if (!wait && backend_.is_asynchronous() && known_.step <= captured_->step) return std::nullopt;
  captured_->shard = copy_.state();
  return captured_;
}

void Trainer::accumulate_gradients(const BatchPlan::Step& batch, const Tensor& loss_scale) {
  const LossFactor dloss{1.0 / static_cast<double>(batch.n_targets), loss_scale};
  model_.train_mode(static_cast<uint64_t>(job_.config.train.seed), batch.epoch);
  backend_.zero(loss_);
  const auto passes = passes_of_rank(batch.rows, collectives_.rank(), collectives_.size(),
                                     job_.config.train.micro_batch_size);
  for (size_t first = 0; first < passes.size(); first += passes_together_) {
    progress_();
    if (first > 0) copy_.keep();  // by now it is done; its ticket must not grow old
    state_.trainables().begin_pass(first == 0, first + passes_together_ >= passes.size());
    const std::vector<TokenBatch> together = upload(job_.train, job_.train_rows, passes, first);
    model_.forward(together);
    model_.loss_and_backward(loss_, together, dloss);
  }
}

std::vector<TokenBatch> Trainer::upload(const TokenDataSet& data, const Rows& rows,
                                        const RowsOfPasses& passes, size_t first) {
  std::vector<TokenBatch> together;
  const size_t end = std::min(first + passes_together_, passes.size());
  for (size_t i = first; i < end; ++i) {
    if (passes[i].empty()) continue;
    const auto place = static_cast<int64_t>(i - first);
    together.push_back(device_pass_.upload(make_pass(data, rows, passes[i]), place));
  }
  return together;
}

double Trainer::flops_of(const BatchPlan::Step& batch) const {
  std::vector<int64_t> lengths;
  for (const int64_t row : batch.rows) {
    for (const Piece& piece : job_.train_rows.rows[static_cast<size_t>(row)])
      lengths.push_back(piece.length);
  }
  return job_.is_full() ? full_model_flops(job_.architecture, lengths, batch.n_targets)
                        : model_flops(job_.architecture, job_.lora, lengths, batch.n_targets);
}

EvalStats Trainer::evaluate(const std::function<void()>& tick) {
  const int64_t start = backend_.moment();
  const double exposed = groups_.exposed_seconds();
  const Rows& rows = job_.eval_rows;
  std::vector<int64_t> all(static_cast<size_t>(rows.n_rows()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  model_.eval_mode();
  backend_.zero(loss_);
  const auto passes = passes_of_rank(all, collectives_.rank(), collectives_.size(),
                                     job_.config.train.micro_batch_size);
  for (size_t first = 0; first < passes.size(); first += passes_together_) {
    const std::vector<TokenBatch> together = upload(job_.eval, rows, passes, first);
    model_.forward(together);
    model_.loss(loss_, together);
    progress_();
    if (tick) tick();
  }
  collectives_.all_reduce_sum(loss_);
  EvalStats stats;
  stats.target_tokens = rows.n_targets;
  stats.loss = loss_on_host() / static_cast<double>(stats.target_tokens);
  add_seconds(Phase::evaluation, backend_.seconds(start, backend_.moment()));
  if (exposed_outside_) *exposed_outside_ += groups_.exposed_seconds() - exposed;
  return stats;
}

StepStats Trainer::first_batch() {
  const BatchPlan::Step batch = plan_->step(1);
  accumulate_gradients(batch, {});
  state_.trainables().finish_gradients();
  collectives_.all_reduce_sum(loss_);
  optimizer_.measure(loss_);
  StepStats stats;
  stats.step = 1;
  stats.target_tokens = batch.n_targets;
  stats.tokens = batch.n_tokens;
  stats.loss = loss_on_host() / static_cast<double>(batch.n_targets);
  return stats;
}

void Trainer::visit_logits(const LogitsVisitor& visit) {
  const BatchPlan::Step batch = plan_->step(1);
  model_.train_mode(static_cast<uint64_t>(job_.config.train.seed), batch.epoch);
  for (const auto& rows : passes_of_rank(batch.rows, collectives_.rank(), collectives_.size(),
                                         job_.config.train.micro_batch_size)) {
    if (rows.empty()) {
      model_.forward({});
      continue;
    }
    const Pass pass = make_pass(job_.train, job_.train_rows, rows);
    const TokenBatch tokens = device_pass_.upload(pass);
    model_.forward({&tokens, 1});
    for (const PassDocument& document : pass.pieces) {
      const int64_t V = job_.architecture.vocab_size;
      std::vector<float> logits(static_cast<size_t>(document.length * V));
      for (int64_t i = 0; i < document.length; i += model_.logits_rows()) {
        const int64_t n = std::min(model_.logits_rows(), document.length - i);
        const Tensor chunk = model_.logits(document.first_row + i, n);
        const int64_t row_bytes = chunk.ld * size_of(chunk.dtype);
        std::vector<std::byte> bytes(static_cast<size_t>(n * row_bytes));
        backend_.download(bytes.data(), chunk.data, static_cast<int64_t>(bytes.size()));
        for (int64_t row = 0; row < n; ++row) {
          to_float(chunk.dtype, &bytes[static_cast<size_t>(row * row_bytes)], V,
                   &logits[static_cast<size_t>((i + row) * V)]);
        }
      }
      visit(document.document, document.length, logits);
    }
  }
}

double Trainer::exposed_seconds() const {
  return exposed_outside_ ? groups_.exposed_seconds() - *exposed_outside_ : 0.0;
}

double Trainer::loss_on_host() const {
  ASSERT(loss_.dtype == DType::f64);
  double loss = 0.0;
  backend_.download(&loss, loss_.data, sizeof loss);
  return loss;
}

void Trainer::add_seconds(Phase phase, double seconds) {
  phase_seconds_[static_cast<size_t>(phase)] += seconds;
}

}  // namespace utrain
