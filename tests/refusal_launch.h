// A refusal, end to end: the exit code of the contract on 1 and on 4 ranks, within 5 s, each
// problem told once and with a remedy, at most 256 MiB above what sound input takes, and nothing
// left on disk.
#pragma once

#include <set>

#include "launch.h"
#include "refusal_cases.h"

namespace utrain {

inline constexpr double kLimitSeconds = 5.0;
inline constexpr int64_t kLimitBytes = int64_t{256} << 20;

inline std::set<std::string> files_under(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) names.insert(entry.path());
  return names;
}

// Of the largest process, where nothing is wrong.
inline int64_t sound_peak_bytes() {
  static const int64_t peak = [] {
    Sandbox sandbox;
    sandbox.flags = {"--check"};
    const Outcome outcome = launch(4, sandbox.arguments());
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    return outcome.peak_bytes;
  }();
  return peak;
}

inline void expect_refusal(const Outcome& outcome, int exit_code, const std::string& word,
                           size_t n_lines) {
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.text();
  const std::vector<std::string> lines = outcome.error_lines();
  EXPECT_EQ(lines.size(), n_lines) << outcome.text();
  EXPECT_EQ(std::set<std::string>(lines.begin(), lines.end()).size(), lines.size())
      << outcome.text();
  bool found = false;
  for (const std::string& line : lines) {
    EXPECT_NE(line.find("; "), std::string::npos) << "no remedy: " << line;
    found |= line.find(word) != std::string::npos;
  }
  EXPECT_TRUE(found) << "no \"" << word << "\" in: " << outcome.text();
  for (const char* crash :
       {"terminate called", "Assertion", "Segmentation", "what()", "Sanitizer"}) {
    EXPECT_EQ(outcome.text().find(crash), std::string::npos) << outcome.text();
  }
}

// A busy machine may make one launch slow: the shorter of two counts.
inline void expect_refusal_in_time(Outcome outcome, int ranks,
                                   const std::vector<std::string>& arguments, int exit_code,
                                   const std::string& word, size_t n_lines) {
  expect_refusal(outcome, exit_code, word, n_lines);
  if (outcome.seconds >= kLimitSeconds) {
    outcome = launch(ranks, arguments);
    expect_refusal(outcome, exit_code, word, n_lines);
  }
  EXPECT_LT(outcome.seconds, kLimitSeconds);
  EXPECT_LT(outcome.peak_bytes, sound_peak_bytes() + kLimitBytes);
}

// Alone and on 4 ranks at the same time: both read the same input, and neither writes.
inline void expect_refused(const Sandbox& sandbox, int exit_code, const std::string& word,
                           size_t n_lines = 1) {
  const std::vector<std::string> arguments = sandbox.arguments();
  const std::set<std::string> before = files_under(sandbox.dir.str());
  {
    Launch four(4, arguments), alone(kAlone, arguments);
    const Outcome of_one = alone.wait(), of_four = four.wait();
    expect_refusal_in_time(of_one, kAlone, arguments, exit_code, word, n_lines);
    expect_refusal_in_time(of_four, 4, arguments, exit_code, word, n_lines);
  }
  EXPECT_EQ(files_under(sandbox.dir.str()), before);
}

}  // namespace utrain
