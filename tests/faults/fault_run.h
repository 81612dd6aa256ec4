// A small run that faults strike: 40 steps of a few milliseconds on 4 ranks, a checkpoint every 5,
// dropout on, evaluations. Whatever happens to it, once it is done it must look as the undisturbed
// run: metrics without times, and the adapter, byte by byte.
//   UTRAIN_FAULTS=full   takes the large numbers (make test-faults); else a short set
//   UTRAIN_FAULTS_SEED   what is random follows from it; printed
//   UTRAIN_FAULTS_COUNT  instead of a test's own number
#pragma once

#include <cmath>
#include <map>
#include <random>

#include "faults/fault_launch.h"
#include "token_files.h"

namespace utrain {

using Words = std::vector<std::string>;

inline bool is_full_set() {
  const char* set = std::getenv("UTRAIN_FAULTS");
  return set != nullptr && std::string(set) == "full";
}
inline int64_t number_in(const char* name, int64_t otherwise) {
  const char* given = std::getenv(name);
  return given != nullptr ? std::atoll(given) : otherwise;
}
inline int count_of(int in_short_set, int in_full_set) {
  return static_cast<int>(
      number_in("UTRAIN_FAULTS_COUNT", is_full_set() ? in_full_set : in_short_set));
}

// Random numbers of one test, and its line in the table of tools/test_faults.
class Campaign {
 public:
  explicit Campaign(const std::string& name)
      : name_(name),
        seed_(static_cast<uint64_t>(number_in("UTRAIN_FAULTS_SEED", 1))),
        random_(seed_),
        start_(std::chrono::steady_clock::now()) {}
  // Every failure up to here is one of this campaign.
  ~Campaign() {
    std::string counts;
    for (const auto& [what, n] : counts_) counts += fmt::format(" {} {}", n, what);
    const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_);
    fmt::print("table: {:<28} {:>6.0f} s  {}  seed {}:{}\n", name_, seconds.count(),
               testing::Test::HasFailure() ? "FAILED" : "passed", seed_, counts);
    std::fflush(stdout);
  }
  Campaign(const Campaign&) = delete;
  Campaign& operator=(const Campaign&) = delete;

  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(std::max<int64_t>(n, 1)));
  }
  template <class T>
  const T& one_of(const std::vector<T>& all) {
    return all.at(static_cast<size_t>(below(static_cast<int64_t>(all.size()))));
  }
  uint64_t seed() { return random_(); }
  void count(const std::string& what, int n = 1) { counts_[what] += n; }
  int counted(const std::string& what) { return counts_[what]; }

 private:
  std::string name_;
  uint64_t seed_;
  std::mt19937_64 random_;
  std::chrono::steady_clock::time_point start_;
  std::map<std::string, int> counts_;
};

class FaultRun {
 public:
  static constexpr int kSteps = 40, kEvery = 5;

  FaultRun() {
    root_ = fs::canonical(dir_.str());
    fs::create_directory(root_ / "model");
    for (const auto& file : fs::directory_iterator(golden_path("llama") + "/model"))
      fs::copy(file.path(), root_ / "model" / file.path().filename());
    // 24 documents of 8 to 30 tokens, 4 a step: 6 or 7 steps an epoch.
    std::mt19937_64 random(5);
    std::vector<int64_t> lengths(26);
    for (int64_t& length : lengths) length = 8 + static_cast<int64_t>(random() % 23);
    TokenDataSet data = test::make_token_data_set(lengths, 320);
    for (int32_t& token : data.tokens) token = static_cast<int32_t>(random() % 320);
    test::write_token_data_set((root_ / "tokens.h5").string(), data);
    write_bytes((root_ / "input.toml").string(), input());
  }

  std::string run_dir() const { return (root_ / "run").string(); }
  std::string checkpoints() const { return run_dir() + "/checkpoints"; }
  std::string file(const std::string& name) const { return (root_ / name).string(); }
  Words arguments(const Words& more = {}) const {
    Words words = {file("input.toml")};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  // Ranks whose launcher is killed at their very end still finish.
  bool is_finished() const {
    return read_bytes(run_dir() + "/summary.json").find("\"exit_code\": 0") != std::string::npos;
  }
  // Anew; the run directory of before is gone.
  void clear() { fs::remove_all(run_dir()); }
  std::unique_ptr<FaultLaunch> start(const std::string& faults, int ranks = 4,
                                     const Words& more = {}) const {
    return std::make_unique<FaultLaunch>(ranks, arguments(more), run_dir(), faults);
  }
  // Without a fault, to its end. Ranks of a launcher that was killed may take a moment to go.
  Outcome go_on(int ranks = 4, const Words& more = {}) const {
    Outcome outcome;
    for (int i = 0; i < 60; ++i) {
      outcome = utrain::launch(ranks, arguments(more), 120.0);
      if (outcome.exit_code != 2 || outcome.err.find("in use") == std::string::npos) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return outcome;
  }

  std::vector<Json> metrics() const { return read_metrics(run_dir() + "/metrics.jsonl"); }
  // 0 where there is none, or where what is left cannot be read.
  int64_t last_step() const {
    const std::string text = read_bytes(run_dir() + "/metrics.jsonl");
    const size_t at = text.rfind("{\"step\":");
    return at == text.npos ? 0 : std::atoll(text.c_str() + at + 8);
  }
  // Steps of the checkpoints that a directory of the final name holds, ascending.
  std::vector<int64_t> checkpoint_steps() const {
    std::vector<int64_t> steps;
    for (const std::string& name : names_in_checkpoints())
      if (name.starts_with("step-") && name.size() == 13 &&
          fs::exists(fs::path(checkpoints()) / name / "COMMITTED"))
        steps.push_back(std::atoll(name.c_str() + 5));
    std::ranges::sort(steps);
    return steps;
  }
  Words names_in_checkpoints() const {
    Words names;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(checkpoints(), error))
      names.push_back(entry.path().filename().string());
    return names;
  }
  // What a save or a removal that was cut off leaves; the next save removes it.
  bool has_leftovers() const {
    return std::ranges::any_of(names_in_checkpoints(), [](const std::string& name) {
      return name != "LATEST" && !(name.starts_with("step-") && name.size() == 13);
    });
  }

  // The undisturbed run, made once in a process.
  struct Result {
    std::string metrics, adapter;
    double seconds = 0.0;
  };
  static const Result& reference() {
    static const Result result = [] {
      const FaultRun run;
      const Outcome outcome = run.go_on();
      EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
      Result made = run.result();
      made.seconds = outcome.seconds;
      return made;
    }();
    return result;
  }
  Result result() const {
    std::string config = read_bytes(run_dir() + "/adapter/adapter_config.json");
    const size_t at = config.find(root_.string());  // where this run's model lies
    if (at != config.npos) config.erase(at, root_.string().size());
    return {text_without_times(metrics()),
            config + read_bytes(run_dir() + "/adapter/adapter_model.safetensors")};
  }
  // Done without a human: no more faults, the run ends and is the reference to the bit.
  void expect_finishes_as_if_nothing_was(const Words& more = {}) const {
    const Result& wanted = reference();
    const Outcome outcome = go_on(4, more);
    if (outcome.err.find("holds a finished run") == std::string::npos) {
      ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
    }
    const Result found = result();
    EXPECT_GT(wanted.adapter.size(), 1000u);
    EXPECT_TRUE(found.adapter == wanted.adapter) << "another adapter\n" << outcome.text();
    EXPECT_EQ(found.metrics, wanted.metrics) << outcome.text();
  }

  // Of one rank, in order: the calls on files below `path` that a whole run makes.
  std::vector<Struck> calls_of(int rank, const std::string& path) const {
    const FaultRun run;
    const auto launch =
        run.start(fmt::format("rank={} call=file path={} nth=1+ do=note", rank, path));
    const Outcome outcome = launch->wait();
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    return launch->struck();
  }

 private:
  std::string input() const {
    const auto at = [&](const char* name) { return (root_ / name).string(); };
    return fmt::format(
        "[model]\npath = \"{}\"\ndtype = \"float32\"\n"
        "[lora]\nr = 8\ndropout = 0.1\n"
        "[data]\ntrain = \"{}\"\neval = \"{}\"\nseq_len = 64\npacking = false\n"
        "[train]\nmax_steps = {}\nglobal_batch_size = 4\nlr = 0.005\nwarmup_steps = 3\n"
        "[eval]\nevery = 10\n"
        "[checkpoint]\nevery = {}\nkeep = 3\n"
        "[log]\nevery = 10\n"
        "[run]\ndir = \"{}\"\n",
        at("model"), at("tokens.h5"), at("tokens.h5"), kSteps, kEvery, run_dir());
  }

  TempDir dir_;
  fs::path root_;
};

// The rank and moment of a death: the fault struck, the job ended soon and not as if it were done.
inline void expect_over_soon(const FaultLaunch& launch, const Outcome& outcome, double seconds) {
  EXPECT_NE(outcome.exit_code, 0) << outcome.text();
  const auto at = launch.struck_at();
  if (!at) return;
  const std::chrono::duration<double> since = fs::file_time_type::clock::now() - *at;
  EXPECT_LT(since.count(), seconds) << outcome.text();
}

}  // namespace utrain
