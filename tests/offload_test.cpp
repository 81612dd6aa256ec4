// The optimizer's state in host memory beside a device whose copies are as late as they may be: each
// is made when it is waited for, and not before, from what its source holds then, so that a wait
// that is missing, or a source that is written too early, changes the numbers. The values must have
// the bits of an update on the device, in every strategy, also where they are narrower than the
// parameters.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "cpu/rounding_backend.h"
#include "plan/recording_backend.h"
#include "tiny_model.h"
#include "train/optimizer.h"

namespace utrain {
namespace {

// Copies of a direction are made in the order of their beginning.
class LateBackend : public RecordingBackend {
 public:
  LateBackend(Backend& inner, DType dtype) : RecordingBackend(inner), dtype_(dtype) {}
  DType dtype() const override { return dtype_; }

  int64_t copy_in_begin(void* device, const void* host, int64_t bytes) override {
    return begin({device, host, bytes, true});
  }
  int64_t copy_out_begin(void* host, const void* device, int64_t bytes) override {
    return begin({host, device, bytes, false});
  }
  void copy_wait(int64_t ticket) override { make(ticket); }
  void copy_wait_host(int64_t ticket) override { make(ticket); }
  int64_t n_copies() const { return n_copies_; }

 private:
  struct Copy {
    void* to;
    const void* from;
    int64_t bytes;
    bool in;
  };
  int64_t begin(const Copy& copy) {
    under_way_[++n_copies_] = copy;
    return n_copies_;
  }
  void make(int64_t ticket) {
    const auto asked = under_way_.find(ticket);
    if (asked == under_way_.end()) return;
    const bool in = asked->second.in;
    for (auto i = under_way_.begin(); i != under_way_.end() && i->first <= ticket;) {
      const Copy& copy = i->second;
      if (copy.in != in) {
        ++i;
        continue;
      }
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      i = under_way_.erase(i);
    }
  }

  DType dtype_;
  std::map<int64_t, Copy> under_way_;  // by ticket
  int64_t n_copies_ = 0;
};

constexpr int64_t kUnits = 6;
const std::vector<int64_t> kUnitBegin = {0, 2048, 4096, 6144, 8192, 10240, 13312};

// Updates of made-up gradients, without a model: the calls of a pass and of a step alone.
class Updates {
 public:
  Updates(DType dtype, Strategy strategy, bool offload)
      : inner_(make_cpu_backend(DType::f32)),
        backend_(*inner_, dtype),
        values_({"values", dtype, MemoryClass::base,
                 strategy == Strategy::zero3 ? Holding::sharded : Holding::whole},
                Shards(kUnitBegin, 0, 1), backend_, alone_, arena_),
        trainables_({strategy, offload}, {{0, 5000, true}, {5000, 8312, false}}, values_, backend_,
                    alone_, arena_),
        optimizer_(options(), trainables_, backend_, arena_),
        loss_id_(arena_.declare("loss", DType::f64, 1, 1, MemoryClass::workspace)) {
    host_memory_ = backend_.allocate_host(arena_.host_bytes());
    void* memory = backend_.allocate(arena_.bytes());
    std::memset(memory, 0xFF, static_cast<size_t>(arena_.bytes()));
    std::memset(host_memory_.get(), 0xFF, static_cast<size_t>(arena_.host_bytes()));
    arena_.place(memory, host_memory_.get());
    values_.bind(arena_);
    trainables_.bind(arena_);
    optimizer_.bind(arena_);
    backend_.zero(arena_[loss_id_]);
    for (int64_t u = 0; u < kUnits; ++u)
      trainables_.set_parameters(u, 0, numbers(u, trainables_.own_elems(u)));
    trainables_.parameters_changed();
  }

  // What a forward pass would compute with, as it would see it: bits of all values.
  std::string forward() {
    std::string bits;
    for (int64_t i = 0; i < kUnits; ++i) {
      const int64_t u = (i + kUnits - 1) % kUnits;  // the last unit first
      trainables_.get(u);
      values_.get(u);
      const Tensor own = values_.own(u);
      bits.append(static_cast<const char*>(own.data),
                  static_cast<size_t>(own.cols * size_of(own.dtype)));
      values_.release(u);
    }
    return bits;
  }

  std::string step(int64_t step, int64_t passes, bool overflows = false) {
    std::string bits;
    for (int64_t pass = 0; pass < passes; ++pass) {
      bits += forward();
      trainables_.begin_pass(pass == 0, pass == passes - 1);
      trainables_.begin_gradients(kUnits - 1);
      for (int64_t u = kUnits - 2; u >= 0; --u) {
        trainables_.begin_gradients(u);
        add_gradients(u, step * 100 + pass);
        trainables_.end_gradients(u);
      }
      add_gradients(kUnits - 1, step * 100 + pass);
      if (overflows) trainables_.gradients(2).as<float>()[7] = HUGE_VALF;
      trainables_.end_gradients(kUnits - 1);
    }
    trainables_.finish_gradients();
    if (overflows) *arena_[loss_id_].as<double>() = HUGE_VAL;
    optimizer_.step(arena_[loss_id_], 1e-2);
    backend_.zero(arena_[loss_id_]);
    return bits;
  }
  std::vector<float> parameters() {
    trainables_.finish_update();
    std::vector<float> all;
    for (int64_t u = 0; u < kUnits; ++u) {
      const Tensor own = trainables_.parameters(u);
      all.insert(all.end(), own.as<float>(), own.as<float>() + own.cols);
    }
    return all;
  }
  double n_updates() const {
    return optimizer_.state_end(
        optimizer_.state_begin())[static_cast<size_t>(StepState::n_updates)];
  }
  void finish() { trainables_.finish_update(); }
  const Arena& arena() const { return arena_; }
  int64_t n_copies() const { return backend_.n_copies(); }

 private:
  static Config::Train options() {
    Config::Train options;
    options.weight_decay = 0.1;
    options.max_grad_norm = 0.5;
    return options;
  }
  static std::vector<float> numbers(int64_t key, int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i)
      x[static_cast<size_t>(i)] =
          2.0f *
              uniform(
                  philox(mix(static_cast<uint64_t>(key)), static_cast<uint32_t>(i), 0, 0, 0).x[0]) -
          1.0f;
    return x;
  }
  void add_gradients(int64_t u, int64_t key) {
    const Tensor g = trainables_.gradients(u);
    const std::vector<float> more = numbers(key * kUnits + u, g.cols);
    for (int64_t i = 0; i < g.cols; ++i) g.as<float>()[i] += more[static_cast<size_t>(i)];
  }

  std::unique_ptr<Backend> inner_;
  LateBackend backend_;
  SilentCollectives alone_;
  Arena arena_;
  std::shared_ptr<void> host_memory_;
  UnitStore values_;
  Trainables trainables_;
  Optimizer optimizer_;
  Arena::Id loss_id_;
};

class Offload : public testing::TestWithParam<std::tuple<DType, Strategy>> {};

// A strategy of one rank: reductions leave sums where they are, so gradients are this rank's own.
TEST_P(Offload, HasTheBitsOfTheDevice) {
  const auto [dtype, strategy] = GetParam();
  Updates wanted(dtype, strategy, false), found(dtype, strategy, true);
  EXPECT_EQ(found.arena().bytes(MemoryClass::optimizer), 0);
  EXPECT_GE(found.arena().host_bytes(), 4 * 4 * kUnitBegin.back());
  EXPECT_EQ(wanted.arena().host_bytes(), 0);
  for (int64_t step = 1; step <= 6; ++step) {
    SCOPED_TRACE(step);
    const int64_t passes = 1 + step % 2;
    const bool overflows = step == 4;
    const std::string seen = wanted.step(step, passes, overflows);
    EXPECT_TRUE(found.step(step, passes, overflows) == seen);
    if (step == 2) found.finish();  // as before an evaluation
    if (step != 3) continue;
    EXPECT_TRUE(found.parameters() == wanted.parameters());  // as for a checkpoint
  }
  EXPECT_TRUE(found.forward() == wanted.forward());
  EXPECT_TRUE(found.parameters() == wanted.parameters());
  EXPECT_EQ(found.n_updates(), 5.0);
  EXPECT_EQ(wanted.n_copies(), 0);
  EXPECT_EQ(found.n_copies(), kUnits * (1 + 6 + 6)) << "values at first, gradients, values";
}

INSTANTIATE_TEST_SUITE_P(, Offload,
                         testing::Combine(testing::Values(DType::f32, DType::bf16, DType::f16),
                                          testing::Values(Strategy::ddp, Strategy::zero1)));

// Rounded on the host as the device rounds: to nearest even, overflow to infinity, NaN kept.
TEST(HostBackend, ConvertsToNarrowTypes) {
  const auto backend = make_cpu_backend(DType::f32);
  std::vector<float> x(100003);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::bit_cast<float>(static_cast<uint32_t>(mix(i)));
  for (const DType dtype : {DType::bf16, DType::f16}) {
    std::vector<uint16_t> found(x.size()), wanted(x.size());
    const auto n = static_cast<int64_t>(x.size());
    backend->convert(make_tensor(found.data(), dtype, 1, n),
                     make_tensor(x.data(), DType::f32, 1, n));
    from_float(dtype, x.data(), n, wanted.data());
    EXPECT_TRUE(found == wanted) << name_of(dtype);
  }
}

}  // namespace
}  // namespace utrain
