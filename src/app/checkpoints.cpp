#include "app/checkpoints.h"

#include <algorithm>
#include <chrono>
#include <span>

#include "app/resume.h"
#include "app/save.h"
#include "comm/quiet_thread.h"
#include "core/finite.h"

namespace utrain {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kFormatVersion = 1;

// sign: is told of each piece, as of path.
bool is_finite(const ShardState& shard, const FileSign& sign, const std::string& path) {
  constexpr size_t kPiece = size_t{16} << 20;
  for (const float* x : {shard.parameters, shard.m, shard.v}) {
    for (std::span rest(x, static_cast<size_t>(shard.n_elem())); !rest.empty();) {
      const std::span piece = rest.first(std::min(kPiece, rest.size()));
      sign(path);
      if (!are_finite(piece)) return false;
      rest = rest.subspan(piece.size());
    }
  }
  return true;
}

}  // namespace

class Checkpoints::Stall {
 public:
  explicit Stall(Checkpoints& of) : of_(of), begin_(Clock::now()) { ++of_.n_stalls_; }
  ~Stall() {
    if (--of_.n_stalls_ > 0) return;
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    of_.stall_seconds_ += seconds;
    of_.own_stall_seconds_ += seconds;
    of_.longest_stall_seconds_ = std::max(of_.longest_stall_seconds_, of_.own_stall_seconds_);
  }
  Stall(const Stall&) = delete;
  Stall& operator=(const Stall&) = delete;

 private:
  Checkpoints& of_;
  Clock::time_point begin_;
};

Checkpoints::Checkpoints(const Job& job, Trainer& trainer, const World& world,
                         RunDirectory* directory, std::function<Json()> identity)
    : job_(job),
      trainer_(trainer),
      world_(world),
      directory_(directory),
      identity_(std::move(identity)) {
  // Weights are read for it: before the first step rather than in one.
  if (job.config.checkpoint.every > 0) world_.first_rank([&] { known_identity_ = identity_(); });
}

Checkpoints::~Checkpoints() {
  if (thread_.valid()) thread_.wait();
}

std::string Checkpoints::agree(const std::string& stop_reason) {
  if (stage_ == Stage::copied) begin_writing(false);
  const auto all = world_.max({stop_reason.empty() ? 0 : 1, work()});
  settle(static_cast<Work>(all[1]));
  if (all[0] == 0) return "";
  for (const std::string& reason : world_.gather_text(stop_reason))
    if (!reason.empty()) return reason;
  return "";
}

void Checkpoints::finish() {
  if (stage_ == Stage::none) return;
  world_.watchdog().enter(RunPhase::save, step_);
  if (stage_ == Stage::copied) begin_writing(true);
  while (stage_ != Stage::none) {
    // Here and not in the agreement, so that a rank whose disk hangs is the one that is named.
    if (thread_.valid()) thread_.wait();
    settle(static_cast<Work>(world_.max({work()})[0]));
  }
}

void Checkpoints::finish_between_steps() {
  const Stall stall(*this);
  finish();
}

void Checkpoints::finish_or_drop() {
  if (stage_ == Stage::copied) stage_ = Stage::none;
  finish();
}

void Checkpoints::drop() {
  if (stage_ == Stage::committing) return finish();
  if (stage_ == Stage::writing) {
    world_.watchdog().enter(RunPhase::save, step_);
    if (thread_.valid()) thread_.wait();
    world_.barrier();  // nobody writes any more
    if (world_.rank() == 0) abandon_checkpoint(temp_, sign_of_main());
    thread_ = {};
  }
  stage_ = Stage::none;
}

void Checkpoints::capture(int64_t step, std::optional<double> eval_loss) {
  ASSERT(stage_ == Stage::none);
  own_stall_seconds_ = 0.0;
  const Stall stall(*this);
  trainer_.capture();
  stage_ = Stage::copied;
  step_ = step;
  eval_loss_ = eval_loss;
  if (known_step_ == step) totals_ = known_;
}

void Checkpoints::know(int64_t step, const RunTotals& totals) {
  known_step_ = step;
  known_ = totals;
  if (stage_ != Stage::none && step == step_) totals_ = totals;
}

void Checkpoints::begin_writing(bool wait) {
  const Stall stall(*this);
  captured_ = trainer_.captured(wait);
  ASSERT(captured_ || !wait);
  if (!captured_) return;
  const auto state = [&](StepState i) { return captured_->optimizer[static_cast<size_t>(i)]; };
  if (state(StepState::is_finite) == 0.0 && state(StepState::overflowed) == 0.0) {
    stage_ = Stage::none;
    return;
  }
  temp_.clear();
  world_.first_rank([&] {
    if (known_identity_.is_null()) known_identity_ = identity_();
    temp_ =
        begin_checkpoint(checkpoints_folder(job_.config.run.dir), step_, bytes(), sign_of_main());
  });
  temp_ = world_.broadcast(temp_);
  thread_ = write_beside([temp = temp_, shard = captured_->shard, rank = world_.rank(),
                          ranks = world_.size()](const FileSign& sign) -> Written {
    if (!is_finite(shard, sign, temp)) return {{}, false, ""};
    return {write_shard(temp, rank, ranks, shard, sign), true, ""};
  });
  stage_ = Stage::writing;
}

std::future<Checkpoints::Written> Checkpoints::write_beside(
    std::function<Written(const FileSign& sign)> write) {
  return quiet_async([&saves = world_.watchdog().saves(), step = step_, write = std::move(write)] {
    const SaveWatch::Writing save(saves, step);
    return write([&save](const std::string& file) { save.at(file); });
  });
}

Checkpoints::Work Checkpoints::work() {
  if (thread_.valid()) {
    if (thread_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return kRunning;
    try {
      written_ = thread_.get();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }
  return failure_ ? kFailed : kDone;
}

void Checkpoints::settle(Work of_any_rank) {
  if (of_any_rank == kFailed) fail_together();
  if (of_any_rank == kRunning) return;
  if (stage_ == Stage::writing)
    commit();
  else if (stage_ == Stage::committing)
    done();
}

void Checkpoints::commit() {
  const Stall stall(*this);
  Json own = written_.shard.to_json();
  own.set("is_finite", written_.is_finite);
  std::vector<FileFacts> shards;
  bool are_all_finite = true;
  for (const std::string& text : world_.gather_text(to_text(own))) {
    const Json json = parse_json(text, "a rank's shard");
    are_all_finite &= json.find("is_finite")->as_bool();
    if (are_all_finite) shards.push_back(FileFacts::from_json(json, "a rank's shard"));
  }
  if (!are_all_finite) {  // the steps that follow will say so
    if (world_.rank() == 0) abandon_checkpoint(temp_, sign_of_main());
    stage_ = Stage::none;
    return;
  }
  stage_ = Stage::committing;
  if (world_.rank() != 0) return;
  CheckpointContents contents;
  contents.step = step_;
  contents.layout = &trainer_.model_state().layout();
  contents.shards = std::move(shards);
  for (int r = 0; r < world_.size(); ++r)
    contents.slices.push_back(slices_of_rank(*contents.layout, r, world_.size()));
  contents.state = state_json();
  if (!job_.is_full()) {
    contents.write_output = [&](const std::string& dir, const std::vector<float>& parameters,
                                const FileSign& sign) {
      save_adapter(dir + "/adapter", trainer_.model_state().layout(), parameters, job_.config,
                   sign);
    };
  }
  thread_ = write_beside([this, contents = std::move(contents)](const FileSign& sign) -> Written {
    const std::string& run_dir = job_.config.run.dir;
    sign(run_dir + "/metrics.jsonl");
    directory_->sync_metrics();
    const std::string path = commit_checkpoint(temp_, contents, sign);
    retain_checkpoints(checkpoints_folder(run_dir), job_.config.checkpoint.keep, sign);
    return {{}, true, path};
  });
}

void Checkpoints::done() {
  stage_ = Stage::none;
  ++n_written_;
  last_step_ = step_;
  last_path_ = written_.path;
}

void Checkpoints::fail_together() {
  // The threads of other ranks may write for longer than a step may take.
  world_.watchdog().enter(RunPhase::save, step_);
  if (thread_.valid()) thread_.wait();
  world_.barrier();  // nobody writes any more
  if (world_.rank() == 0) abandon_checkpoint(temp_, sign_of_main());
  world_.together([&] {
    if (failure_) std::rethrow_exception(failure_);
  });
  fail(ExitCode::internal, temp_, "a rank failed to save and does not say why",
       "this is a fault of utrain: please report it");
}

FileSign Checkpoints::sign_of_main() const {
  return [&watchdog = world_.watchdog()](const std::string&) { watchdog.progress(); };
}

Json Checkpoints::state_json() const {
  Json state = Json::object();
  state.set("format_version", kFormatVersion).set("step", step_);
  if (eval_loss_) state.set("eval_loss", *eval_loss_);
  RunTotals totals = totals_;
  totals.n_checkpoints += n_written_ + 1;
  state.set("totals", to_json(totals)).set("optimizer", optimizer_to_json(captured_->optimizer));
  for (const auto& [key, value] : known_identity_.as_object()) state.set(key, value);
  return state;
}

// About: three arrays, the adapter, and what describes them.
int64_t Checkpoints::bytes() const {
  constexpr int64_t kDescriptions = int64_t{1} << 20;
  const int64_t arrays = job_.is_full() ? 3 : 4;
  return arrays * trainer_.model_state().layout().n_elem() * size_of(DType::f32) + kDescriptions;
}

}  // namespace utrain
