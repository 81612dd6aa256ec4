// Where the time of a training step goes: every operation of backend.h beside the ceiling of this
// very machine.
//   step_table input.toml [--section.key=value ...] [--dry-run STEPS]         one rank, 10 steps
// Runs the steps twice, as they are and with a moment before and after each operation, then
// measures the ceilings: the rate of the model's largest product, and of a copy. An operation's
// ceiling is the longer of FLOPs / product rate and bytes / copy rate (plan/op_cost.h). An
// operation that the host is late for is charged with the wait.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "app/machine.h"
#include "app/peak_flops.h"
#include "app/progress.h"
#include "config/command_line.h"
#include "core/normal.h"
#include "plan/recording_backend.h"
#include "train/choose_recompute.h"
#include "train/trainer.h"

namespace utrain {
namespace {

constexpr int64_t kWarmUpSteps = 3, kDefaultSteps = 10;
constexpr double kSeconds = 2.0;  // of each ceiling: long enough for clocks and power to settle
constexpr int64_t kCopyBytes = int64_t{1} << 30;
constexpr int64_t kStage = int64_t{1} << 20;  // floats

// The largest product of the model over the rows of a full pass, y = x W', and two tensors to copy.
class Ceilings {
 public:
  Ceilings(const Job& job, Backend& backend, int64_t memory_budget) : backend_(backend) {
    const int64_t N = job.pass_capacity(), size = size_of(backend.dtype());
    for (const Group group : kGroups) {
      ProjectionShape shape{0, 0};
      for (const Projection p : kProjections) {
        if (group_of(p) != group) continue;
        shape = {shape_of(p, job.architecture).in, shape.out + shape_of(p, job.architecture).out};
      }
      if (shape.in * shape.out > in_ * out_) in_ = shape.in, out_ = shape.out;
    }
    N_ = N;
    const int64_t product = size * (N_ * in_ + out_ * in_ + N_ * out_);
    const int64_t copy = std::min(kCopyBytes, memory_budget / 16) / 256 * 256;
    copy_elems_ = copy / size;
    bytes_ = std::max(product + 3 * 256, 2 * copy) + kStage * 4;
    memory_ = static_cast<char*>(backend.allocate(bytes_));
  }

  int64_t bytes() const { return bytes_; }
  std::string product() const { return fmt::format("{} x {} x {}", N_, out_, in_); }

  // FLOP/s
  double product_rate() {
    const DType T = backend_.dtype();
    const int64_t size = size_of(T);
    char* memory = memory_;
    const auto next = [&](int64_t rows, int64_t cols) {
      const Tensor x = make_tensor(memory, T, rows, cols);
      memory += (rows * cols * size + 255) / 256 * 256;
      return x;
    };
    const Tensor x = next(N_, in_), y = next(N_, out_);
    Linear linear;
    linear.W = next(out_, in_);
    fill(x, 1.0f, 1);  // zeros would be easy on power, and faster
    fill(linear.W, 0.02f, 2);
    const double seconds = seconds_of([&] { backend_.linear_forward(y, {}, x, linear, {}); });
    return cost_of_linear_forward(y, {}, x, linear).sum().flops / seconds;
  }

  // bytes/s, read and written
  double copy_rate() {
    const DType T = backend_.dtype();
    const Tensor from = make_tensor(memory_, T, 1, copy_elems_);
    const Tensor to = make_tensor(memory_ + copy_elems_ * size_of(T), T, 1, copy_elems_);
    fill(from, 1.0f, 3);
    const double seconds = seconds_of([&] { backend_.convert(to, from); });
    return cost_of_convert(to, from).bytes / seconds;
  }

 private:
  void fill(const Tensor& x, float stddev, uint64_t key) {
    std::vector<float> values(static_cast<size_t>(kStage));
    fill_normal(key, stddev, 0, kStage, values.data());
    char* place = memory_ + bytes_ - kStage * 4;
    backend_.upload(place, values.data(), kStage * 4);
    const Tensor stage = make_tensor(place, DType::f32, 1, kStage);
    const Tensor flat = make_tensor(x.data, x.dtype, 1, x.n_elem());
    for (int64_t i = 0; i < x.n_elem(); i += kStage) {
      const int64_t n = std::min(kStage, x.n_elem() - i);
      backend_.convert(flat.columns(i, n), stage.columns(0, n));
    }
  }

  // Of one call, once the device is warm.
  template <class F>
  double seconds_of(F&& work) {
    const auto time = [&](int64_t n) {
      const int64_t from = backend_.moment();
      for (int64_t i = 0; i < n; ++i) work();
      return backend_.seconds(from, backend_.moment());
    };
    time(3);
    const auto n = static_cast<int64_t>(std::ceil(kSeconds / std::max(time(3) / 3.0, 1e-6)));
    return time(n) / static_cast<double>(n);
  }

  Backend& backend_;
  int64_t N_ = 0, in_ = 0, out_ = 0, copy_elems_ = 0, bytes_ = 0;
  char* memory_ = nullptr;
};

// A step's mean of some steps.
struct StepMeans {
  double seconds = 0.0, tokens = 0.0, flops = 0.0;

  void add(const std::vector<StepStats>& steps, int64_t n) {
    for (const StepStats& step : steps) {
      tokens += static_cast<double>(step.tokens) / static_cast<double>(n);
      flops += step.model_flops / static_cast<double>(n);
    }
  }
};

// Steps [first, first + n) as they are, one under way while the next is launched.
StepMeans plain_steps(Trainer& trainer, Backend& backend, int64_t first, int64_t n) {
  StepMeans means;
  const int64_t from = backend.moment();
  for (int64_t step = first; step < first + n; ++step) means.add(trainer.train_step(step), n);
  const int64_t to = backend.moment();
  means.add(trainer.finish_steps(), n);
  means.seconds = backend.seconds(from, to) / static_cast<double>(n);
  return means;
}

// Steps [first, first + n) with the times of their operations, read after each step: a step's
// moments fit into what a backend keeps, and no step waits for the reading of another.
StepMeans recorded_steps(Trainer& trainer, RecordingBackend& recorder, int64_t first, int64_t n) {
  StepMeans means;
  recorder.record(true);
  recorder.time(true);
  for (int64_t step = first; step < first + n; ++step) {
    const int64_t from = recorder.moment();
    means.add(trainer.train_step(step), n);
    const int64_t to = recorder.moment();
    means.add(trainer.finish_steps(), n);
    means.seconds += recorder.seconds(from, to) / static_cast<double>(n);
    recorder.records();
  }
  return means;
}

struct Rates {
  double flops = 0.0, bytes = 0.0;  // per second
};

// Seconds that an operation takes at least; 0 where neither rate bounds it.
double ceiling_of(const OpRecord& record, const Rates& rates) {
  if (record.op == "upload" || record.op == "download") return 0.0;  // another bus
  return std::max(record.cost.flops / rates.flops, record.cost.bytes / rates.bytes);
}

void print_operations(std::vector<OpRecord> records, const Rates& rates, int64_t n_steps,
                      double recorded_seconds, double step_seconds) {
  const auto steps = static_cast<double>(n_steps);
  std::sort(records.begin(), records.end(),
            [](const OpRecord& a, const OpRecord& b) { return a.seconds > b.seconds; });
  fmt::print("{:<36} {:>7} {:>9} {:>7} {:>9} {:>8} {:>12}\n", "operation", "calls", "ms", "share",
             "TFLOP/s", "GB/s", "% of ceiling");
  const auto line = [&](const std::string& name, double seconds) {
    fmt::print("{:<36} {:>7} {:>9.3f} {:>6.2f}%", name, "", 1e3 * seconds,
               100.0 * seconds / step_seconds);
  };
  double sum = 0.0, at_ceilings = 0.0, flops = 0.0;
  OpCost linear, adapters;
  for (const OpRecord& r : records) {
    const double seconds = r.seconds / steps, ceiling = ceiling_of(r, rates);
    fmt::print("{:<36} {:>7.1f} {:>9.3f} {:>6.2f}% {:>9} {:>8.4g} {:>12}\n",
               r.kind.empty() ? r.op : r.op + " " + r.kind, static_cast<double>(r.calls) / steps,
               1e3 * seconds, 100.0 * seconds / step_seconds,
               r.cost.flops > 0.0 ? fmt::format("{:.4g}", 1e-12 * r.cost.flops / r.seconds) : "",
               1e-9 * r.cost.bytes / r.seconds,
               ceiling > 0.0 ? fmt::format("{:.1f}", 100.0 * ceiling / r.seconds) : "");
    sum += seconds;
    at_ceilings += ceiling / steps;
    flops += r.cost.flops / steps;
    if (r.op.rfind("linear", 0) != 0) continue;
    linear += r.cost;
    adapters += r.adapters;
  }
  line("all operations", sum);
  fmt::print(" {:>9.4g}\n", 1e-12 * flops / sum);
  line("between them", recorded_seconds - sum);
  fmt::print("\n");
  line("the step, recorded", recorded_seconds);
  fmt::print("\n");
  line("the step, nothing recorded", step_seconds);
  fmt::print(" {:>9.4g}\n", 1e-12 * flops / step_seconds);
  line("all operations at their ceilings", at_ceilings);
  fmt::print("\n");
  if (linear.flops > 0.0) {
    fmt::print("of the linear operations, the adapters are {:.2f} % of the FLOPs\n",
               100.0 * adapters.flops / linear.flops);
  }
}

// That the moments of one step, two an operation, can all be asked for when it ends, and that none
// is read before.
void check_calls(const std::vector<OpRecord>& warm_up) {
  int64_t calls = 0;
  for (const OpRecord& record : warm_up) calls += record.calls;
  if (calls / kWarmUpSteps < Backend::kMoments / 4) return;
  fail(ExitCode::usage, "step_table",
       fmt::format("{} operations a step, wanted fewer than {}", calls / kWarmUpSteps,
                   Backend::kMoments / 4),
       "lower train.global_batch_size, or raise train.micro_batch_size");
}

void run(const CommandLine& command_line, const World& world) {
  if (world.size() != 1) {
    fail(ExitCode::usage, "step_table", fmt::format("{} ranks", world.size()), "start one");
  }
  const int64_t n = command_line.dry_run > 0 ? command_line.dry_run : kDefaultSteps;
  const int64_t plain_first = kWarmUpSteps + 1, recorded_first = plain_first + n;
  Config config = read_config(command_line.input, command_line.overrides);
  config.train.epochs = 0.0;
  config.train.max_steps = recorded_first + n;
  const Job job = read_job(config, 1);
  Machine machine = open_machine(config, world);
  Backend& backend = *machine.backend;
  Ceilings ceilings(job, backend, machine.memory_budget);
  const std::vector<Recompute> policy =
      choose_recompute(job, backend, *machine.collectives,
                       {machine.memory_budget - ceilings.bytes(), machine.gpus.empty()});

  RecordingBackend recorder(backend);
  Trainer trainer(job, recorder, *machine.collectives, policy);
  trainer.load();
  recorder.record(true);
  plain_steps(trainer, backend, 1, kWarmUpSteps);
  recorder.record(false);
  check_calls(recorder.records());
  recorder.clear();
  const StepMeans plain = plain_steps(trainer, backend, plain_first, n);
  const StepMeans recorded = recorded_steps(trainer, recorder, recorded_first, n);
  const std::vector<OpRecord> records = recorder.records();
  const Rates rates{ceilings.product_rate(), ceilings.copy_rate()};

  print_operations(records, rates, n, recorded.seconds, plain.seconds);
  const std::string gpu = machine.gpus.empty() ? "" : machine.gpus.front();
  const double peak = peak_flops(gpu, backend.dtype()), model_rate = plain.flops / plain.seconds;
  fmt::print("{}, {}, {} steps, {} planned\n", machine.description, name_of(backend.dtype()), n,
             text_of_bytes(trainer.arena().bytes()));
  fmt::print("ceilings: product {} at {:.4g} TFLOP/s, copy at {:.4g} GB/s read and written\n",
             ceilings.product(), 1e-12 * rates.flops, 1e-9 * rates.bytes);
  fmt::print("speed: {} tokens/s, {:.4g} model TFLOP/s, {:.1f} % of the product's rate",
             text_of_count(plain.tokens / plain.seconds), 1e-12 * model_rate,
             100.0 * model_rate / rates.flops);
  if (peak > 0.0) {
    fmt::print(", MFU {:.1f} % of {:.0f} TFLOP/s", 100.0 * model_rate / peak, 1e-12 * peak);
  }
  fmt::print("\n");
}

}  // namespace
}  // namespace utrain

int main(int argc, char** argv) {
  try {
    const utrain::CommandLine command_line = utrain::parse_command_line(argc, argv);
    const utrain::World world(&argc, &argv);
    utrain::run(command_line, world);
    return 0;
  } catch (const utrain::Error& e) {
    fmt::print(stderr, "step_table: error: {}\n", e.what());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    fmt::print(stderr, "step_table: error: {}\n", e.what());
    return static_cast<int>(utrain::ExitCode::internal);
  }
}
