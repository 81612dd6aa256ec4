// Runs of a golden case with checkpoints, and run directories as an interruption at some step
// leaves them: what a run that was killed after that step's checkpoint has, with a line of metrics
// that is torn.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "launch.h"

namespace utrain {

using Words = std::vector<std::string>;

inline std::set<std::string> names_in(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir))
    names.insert(entry.path().filename().string());
  return names;
}

class ResumeCase : public testing::Test {
 protected:
  // 12 steps of 3 rows, 3 an epoch; evaluated every 4, a checkpoint every 5.
  void use(const std::string& golden) {
    golden_ = golden;
    write_bytes(input_, golden_input(golden, dir_ / "run"));
  }
  ResumeCase() { use("llama"); }

  Words arguments(const std::string& run, const Words& more) const {
    Words words = {input_,
                   "--run.dir=" + at(run),
                   "--data.eval=" + golden_path(golden_) + "/tokens.h5",
                   "--data.packing=false",
                   "--data.shuffle=true",
                   "--train.max_steps=12",
                   "--train.global_batch_size=3",
                   "--eval.every=4",
                   "--checkpoint.every=5",
                   "--checkpoint.keep=10"};
    // What `more` says again is said by it alone.
    for (const std::string& word : more) {
      if (word.find('=') == word.npos) continue;
      const std::string key = word.substr(0, word.find('=') + 1);
      std::erase_if(words, [&](const std::string& old) { return old.starts_with(key); });
    }
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  Outcome start(const std::string& run, int ranks, const Words& more = {}) {
    return launch(ranks, arguments(run, more));
  }
  Outcome expect_code(int code, const std::string& run, int ranks, const Words& more = {}) {
    const Outcome outcome = start(run, ranks, more);
    EXPECT_EQ(outcome.exit_code, code) << outcome.text();
    return outcome;
  }
  Outcome expect_done(const std::string& run, int ranks, const Words& more = {}) {
    return expect_code(0, run, ranks, more);
  }

  std::string at(const std::string& run) const { return dir_ / run; }
  std::string checkpoint(const std::string& run, int64_t step) const {
    return fmt::format("{}/checkpoints/step-{:08}", at(run), step);
  }
  std::vector<Json> metrics(const std::string& run) const {
    return read_metrics(at(run) + "/metrics.jsonl");
  }
  // `to` = what `from` had left, had it been killed just after the checkpoint of `step`.
  void interrupt(const std::string& from, int64_t step, const std::string& to) {
    namespace fs = std::filesystem;
    if (from != to) {
      fs::remove_all(at(to));
      fs::copy(at(from), at(to), fs::copy_options::recursive);
    }
    for (const char* name : {"adapter", "model", "summary.json", "input.resolved.toml"})
      fs::remove_all(at(to) + "/" + name);
    for (const std::string& name : names_in(at(to) + "/checkpoints"))
      if (name.starts_with("step-") && std::stoll(name.substr(5)) > step)
        fs::remove_all(at(to) + "/checkpoints/" + name);
    ASSERT_TRUE(fs::exists(checkpoint(to, step)));
    const std::string lines = read_bytes(at(to) + "/metrics.jsonl");
    write_bytes(at(to) + "/metrics.jsonl", lines + "{\"step\": 1");
  }
  // Metrics without times, and the bytes of what was trained.
  void expect_same_run(const std::string& a, const std::string& b) {
    const std::string ours = text_without_times(metrics(a)),
                      theirs = text_without_times(metrics(b));
    EXPECT_FALSE(ours.empty());
    EXPECT_TRUE(ours == theirs) << "metrics from step " << first_difference(metrics(a), metrics(b))
                                << " on";
    const char* output = golden_.ends_with("_full") ? "/model/model.safetensors"
                                                    : "/adapter/adapter_model.safetensors";
    EXPECT_FALSE(read_bytes(at(a) + output).empty());
    EXPECT_TRUE(read_bytes(at(a) + output) == read_bytes(at(b) + output)) << output;
  }

  static std::string first_difference(const std::vector<Json>& a, const std::vector<Json>& b) {
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      const std::string x = text_without_times({a[i]}), y = text_without_times({b[i]});
      if (x != y) return x + y;
    }
    return fmt::format("{} lines, {} lines", a.size(), b.size());
  }

  TempDir dir_;
  const std::string input_ = dir_ / "input.toml";
  std::string golden_;
};

}  // namespace utrain
