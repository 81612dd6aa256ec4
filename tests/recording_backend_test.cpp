// A whole step of the tiny model through the recorder: the same bits as without it, the FLOPs of
// model/flops.h, and the same record where nothing is computed.
#include "plan/recording_backend.h"

#include <gtest/gtest.h>

#include "model/flops.h"
#include "tiny_model.h"
#include "train/optimizer.h"

namespace utrain {
namespace {

Config::Train adamw_options() {
  Config::Train options;
  options.lr = 1e-2;
  return options;
}

// Forward, backward and update of tiny_pass(), as Trainer does them.
class TinyStep {
 public:
  TinyStep(const TinyModelOptions& o, Backend& backend)
      : pass_(tiny_pass(o.architecture.vocab_size)),
        backend_(backend),
        state_(o.architecture, {Method::lora, o.lora}, backend, alone_, arena_),
        activations_(
            o.architecture, state_.adapters(), backend, pass_.n_tokens,
            std::vector<Recompute>(static_cast<size_t>(o.architecture.n_layers), o.recompute),
            arena_),
        model_(o.architecture, state_.parts(), activations_, backend, arena_, {16, o.dropout}),
        optimizer_(adamw_options(), state_.trainables(), backend, arena_),
        device_pass_(backend, arena_, pass_.n_tokens),
        loss_id_(arena_.declare("loss", backend.loss_dtype(), 1, 1, MemoryClass::workspace)) {
    arena_.place(backend.allocate(arena_.bytes()));
    state_.bind(arena_);
    state_.load(TinyWeights());
    activations_.bind(arena_);
    model_.bind(arena_);
    optimizer_.bind(arena_);
    device_pass_.bind(arena_);
    std::vector<float> flat(static_cast<size_t>(state_.layout().n_elem()));
    init_trainables(state_.layout(), 5, flat.data());
    state_.set_adapters(flat.data());
    state_.loaded();
  }

  void run() {
    const Tensor loss = arena_[loss_id_];
    model_.train_mode(11, 2);
    state_.trainables().begin_pass(true, true);
    backend_.zero(loss);
    const TokenBatch batch = device_pass_.upload(pass_);
    model_.forward({&batch, 1});
    model_.loss_and_backward(loss, {&batch, 1}, {1.0 / static_cast<double>(pass_.n_targets())});
    optimizer_.step(loss, 1e-2);
  }

  std::vector<float> parameters() { return state_.parameters_on_host(); }
  std::vector<float> gradients() { return state_.gradients_on_host(); }
  std::array<double, kStepStates> state() const {
    return optimizer_.state_end(optimizer_.state_begin());
  }
  const Pass& pass() const { return pass_; }
  const Arena& arena() const { return arena_; }

 private:
  Pass pass_;
  Backend& backend_;
  Arena arena_;
  SilentCollectives alone_;
  ModelState state_;
  Activations activations_;
  Transformer model_;
  Optimizer optimizer_;
  DevicePass device_pass_;
  Arena::Id loss_id_;
};

TinyModelOptions everything() {
  TinyModelOptions o{tiny_architecture(), all_projections(3), 0.2, Recompute::block};
  Architecture& a = o.architecture;
  a.attention_bias = a.o_bias = a.mlp_bias = a.qk_norm = true;
  a.window = {0, 4};
  return o;
}

double model_flops_of(const TinyModelOptions& o, const Pass& pass) {
  std::vector<int64_t> lengths;
  for (const PassDocument& document : pass.pieces) lengths.push_back(document.length);
  return model_flops(o.architecture, o.lora, lengths, pass.n_targets());
}

struct Totals {
  double flops = 0.0, attention_backward = 0.0, seconds = 0.0;
};

Totals totals_of(const std::vector<OpRecord>& records) {
  Totals totals;
  for (const OpRecord& record : records) {
    totals.flops += record.cost.flops;
    totals.seconds += record.seconds;
    if (record.op == "attention_backward") totals.attention_backward += record.cost.flops;
  }
  return totals;
}

std::vector<OpRecord> plan_of(const TinyModelOptions& o) {
  RecordingBackend plan(DType::f32);
  TinyStep step(o, plan);
  plan.record(true);
  step.run();
  return plan.records();
}

TEST(RecordingBackend, ChangesNoBit) {
  const std::unique_ptr<Backend> bare = make_cpu_backend(DType::f32);
  const std::unique_ptr<Backend> inner = make_cpu_backend(DType::f32);
  RecordingBackend recorder(*inner);
  recorder.record(true);
  recorder.time(true);
  TinyStep wanted(everything(), *bare), found(everything(), recorder);
  for (int i = 0; i < 2; ++i) {
    wanted.run();
    found.run();
  }
  EXPECT_EQ(found.parameters(), wanted.parameters());
  EXPECT_EQ(found.gradients(), wanted.gradients());
  EXPECT_EQ(found.state(), wanted.state());
  EXPECT_EQ(found.state()[static_cast<size_t>(StepState::is_finite)], 1.0);
  EXPECT_EQ(found.state()[static_cast<size_t>(StepState::n_updates)], 2.0);
  EXPECT_EQ(recorder.name(), bare->name());
  EXPECT_EQ(recorder.allocated_bytes(), found.arena().bytes());
}

// The attention backward pass makes the scores again, which is not counted as the model's: five
// products where the model has four. Without recomputation nothing else differs.
TEST(RecordingBackend, FlopsAreTheModels) {
  TinyModelOptions o = everything();
  o.recompute = Recompute::keep;
  for (const std::vector<Projection>& targets :
       std::vector<std::vector<Projection>>{{kProjections.begin(), kProjections.end()},
                                            {Projection::q, Projection::v},
                                            {Projection::o},
                                            {Projection::gate},
                                            {Projection::down}}) {
    o.lora.targets = targets;
    const Totals totals = totals_of(plan_of(o));
    EXPECT_EQ(totals.flops - totals.attention_backward / 5.0,
              model_flops_of(o, tiny_pass(o.architecture.vocab_size)))
        << targets.size() << " targets, first " << name_of(targets.front());
  }
}

TEST(RecordingBackend, RecomputationCountsOnTop) {
  const TinyModelOptions o = everything();
  const Totals totals = totals_of(plan_of(o));
  TinyModelOptions keep = o;
  keep.recompute = Recompute::keep;
  double again = 0.0;  // the forward pass of each block but for down
  for (const OpRecord& record : plan_of(keep)) {
    const bool is_down = record.kind == "12x10";
    if (record.op == "attention_forward" || (record.op == "linear_forward" && !is_down)) {
      again += record.cost.flops;
    }
  }
  EXPECT_GT(again, 0.0);
  EXPECT_EQ(totals.flops, totals_of(plan_of(keep)).flops + again);
}

TEST(RecordingBackend, APlanIsTheRecordOfARun) {
  const std::unique_ptr<Backend> inner = make_cpu_backend(DType::f32);
  RecordingBackend recorder(*inner);
  TinyStep step(everything(), recorder);
  recorder.record(true);
  recorder.time(true);
  step.run();
  const std::vector<OpRecord> plan = plan_of(everything());
  const std::vector<OpRecord>& run = recorder.records();
  ASSERT_EQ(plan.size(), run.size());
  for (size_t i = 0; i < run.size(); ++i) {
    SCOPED_TRACE(run[i].op + " " + run[i].kind);
    EXPECT_EQ(plan[i].op, run[i].op);
    EXPECT_EQ(plan[i].kind, run[i].kind);
    EXPECT_EQ(plan[i].calls, run[i].calls);
    EXPECT_EQ(plan[i].cost.flops, run[i].cost.flops);
    EXPECT_EQ(plan[i].cost.bytes, run[i].cost.bytes);
    EXPECT_GT(run[i].cost.bytes, 0.0);
    EXPECT_EQ(plan[i].seconds, 0.0);
    EXPECT_GT(run[i].seconds, 0.0);
  }
}

TEST(RecordingBackend, RecordsWhatItIsToldTo) {
  const std::unique_ptr<Backend> inner = make_cpu_backend(DType::f32);
  RecordingBackend recorder(*inner);
  const Tensor x = make_tensor(recorder.allocate(64), DType::f32, 4, 4);
  recorder.zero(x);
  EXPECT_TRUE(recorder.records().empty());
  recorder.record(true);
  recorder.zero(x);
  recorder.zero(x);
  ASSERT_EQ(recorder.records().size(), 1u);
  EXPECT_EQ(recorder.records()[0].op, "zero");
  EXPECT_EQ(recorder.records()[0].calls, 2);
  EXPECT_EQ(recorder.records()[0].cost.bytes, 128.0);
  EXPECT_EQ(recorder.records()[0].seconds, 0.0);
  recorder.clear();
  EXPECT_TRUE(recorder.records().empty());
}

// The same memory takes one pass after the other.
TEST(RecordingBackend, DocumentsAreThoseUploadedLast) {
  RecordingBackend plan(DType::f32);
  plan.record(true);
  TokenBatch batch;
  batch.n_rows = 4;
  auto* end = static_cast<int32_t*>(plan.allocate(16));
  batch.end = end;
  const Tensor x = make_tensor(plan.allocate(64), DType::f32, 4, 2);
  const AttentionShape shape{1, 1, 2, 1.0, 0};
  double before = 0.0;
  const auto pairs_of = [&](const std::vector<int32_t>& ends) {
    plan.upload(end, ends.data(), 16);
    plan.attention_forward(x, x, x, x, x, batch, shape);
    const double flops = plan.records().back().cost.flops - before;
    before += flops;
    return flops / (4.0 * 2.0);
  };
  EXPECT_EQ(pairs_of({4, 4, 4, 4}), 10.0);
  EXPECT_EQ(pairs_of({1, 4, 4, 4}), 7.0);
  EXPECT_EQ(pairs_of({1, 2, 3, 4}), 4.0);
}

// More calls than moments can be asked for.
TEST(RecordingBackend, TimesAnyNumberOfCalls) {
  const std::unique_ptr<Backend> inner = make_cpu_backend(DType::f32);
  RecordingBackend recorder(*inner);
  const Tensor x = make_tensor(recorder.allocate(64), DType::f32, 1, 16);
  recorder.record(true);
  recorder.time(true);
  const int64_t from = recorder.moment();
  for (int64_t i = 0; i < Backend::kMoments; ++i) recorder.zero(x);
  EXPECT_THROW(recorder.seconds(from, recorder.moment()), Error);  // it is too old by now
  EXPECT_EQ(recorder.records()[0].calls, Backend::kMoments);
  EXPECT_GT(recorder.records()[0].seconds, 0.0);
}

TEST(RecordingBackend, TheAdaptersShareOfALinear) {
  RecordingBackend plan(DType::bf16);
  const auto tensor = [&](DType dtype, int64_t rows, int64_t cols) {
    return make_tensor(plan.allocate(rows * cols * size_of(dtype)), dtype, rows, cols);
  };
  constexpr int64_t N = 7, in = 16, out = 24, r = 2;
  const Tensor x = tensor(DType::bf16, N, in), y = tensor(DType::bf16, N, out);
  const Tensor xa = tensor(DType::bf16, N, r);
  const LoraAdapter adapter{0,
                            0,
                            tensor(DType::bf16, r, in),
                            tensor(DType::bf16, out, r),
                            tensor(DType::f32, r, in),
                            tensor(DType::f32, out, r)};
  Linear linear;
  linear.W = tensor(DType::bf16, out, in);
  linear.adapters = {&adapter, 1};
  linear.r = r;
  plan.record(true);
  plan.linear_forward(y, xa, x, linear, {});
  plan.linear_backward(x, y, x, xa, linear, {});
  const std::vector<OpRecord>& records = plan.records();
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].kind, "24x16");
  EXPECT_EQ(records[0].cost.flops, 2.0 * N * in * out + 2.0 * N * r * (in + out));
  EXPECT_EQ(records[0].adapters.flops, 2.0 * N * r * (in + out));
  EXPECT_EQ(records[0].cost.bytes, 2.0 * (N * in + N * out + in * out + N * r + r * in + out * r));
  EXPECT_EQ(records[0].adapters.bytes, 2.0 * (N * r + r * in + out * r));
  EXPECT_EQ(records[1].cost.flops, 2.0 * N * in * out + 4.0 * N * r * (in + out));
  EXPECT_EQ(records[1].adapters.flops, 4.0 * N * r * (in + out));
  EXPECT_EQ(records[1].adapters.bytes,
            2.0 * (N * in + N * r + r * in + out * r) + 8.0 * (r * in + out * r));
  EXPECT_EQ(plan.trainable_dtype(), DType::f32);
  EXPECT_EQ(plan.loss_dtype(), DType::f64);
}

}  // namespace
}  // namespace utrain
