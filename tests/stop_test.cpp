// A run that is asked to stop saves what it has, says how to go on, and exits with 75; started
// again, it ends as if nothing had been.
#include "resume_case.h"

namespace utrain {
namespace {

namespace fs = std::filesystem;

class Stop : public ResumeCase {
 protected:
  // Asks as soon as `lines` lines of metrics are there.
  Outcome stop(const std::string& run, int ranks, const Words& more, size_t lines) {
    Launch running(ranks, arguments(run, more));
    const std::string metrics_path = at(run) + "/metrics.jsonl";
    for (int i = 0; i < 6000 && running.is_running() && metrics_lines(metrics_path) < lines; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    write_bytes(at(run) + "/STOP", "");
    return running.wait();
  }
  static size_t metrics_lines(const std::string& path) { return read_metrics(path).size(); }
};

TEST_F(Stop, SavesAndGoesOn) {
  // The file is looked for once a second: so many steps take longer.
  const Words more = {"--eval.every=0", "--checkpoint.keep=1"};
  const auto with = [&](int steps, int every) {
    Words words = more;
    words.push_back(fmt::format("--train.max_steps={}", steps));
    words.push_back(fmt::format("--checkpoint.every={}", every));
    return words;
  };
  for (const auto& [ranks, steps, every] :
       {std::tuple{kAlone, 30000, 0}, {3, 5000, 400}, {3, 5000, 0}}) {
    SCOPED_TRACE(fmt::format("{} ranks every {}", ranks, every));
    const Words words = with(steps, every);
    fs::remove_all(at("parts"));
    const Outcome stopped = stop("parts", ranks, words, 20);
    ASSERT_EQ(stopped.exit_code, 75) << stopped.text();
    EXPECT_TRUE(stopped.error_lines().empty()) << stopped.text();
    const Json summary = read_json(at("parts") + "/summary.json");
    const int64_t step = summary.find("steps")->as_int64();
    EXPECT_EQ(summary.find("exit_code")->as_int64(), 75);
    EXPECT_EQ(curve(metrics("parts"), "step").size(), static_cast<size_t>(step));
    EXPECT_TRUE(fs::exists(checkpoint("parts", step) + "/COMMITTED"));
    EXPECT_FALSE(fs::exists(at("parts") + "/adapter"));
    EXPECT_NE(stopped.out.find(fmt::format("utrain stopped after step {} of {}: ", step, steps)),
              std::string::npos)
        << stopped.text();
    EXPECT_NE(stopped.out.find("start it again to go on from " + checkpoint("parts", step)),
              std::string::npos)
        << stopped.text();
    EXPECT_FALSE(fs::exists(at("parts") + "/STOP")) << "it stops one run";
  }
  const Outcome again = expect_done("parts", 3, with(5000, 0));
  EXPECT_NE(again.out.find("continues  from step "), std::string::npos) << again.text();
  expect_done("whole", 3, with(5000, 0));
  expect_same_run("whole", "parts");
}

// A Ctrl-C ends `| tee log` with the run, which prints on.
TEST_F(Stop, SavesWhereTheReaderOfTheOutputGoesFirst) {
  std::string words;
  for (const std::string& word : arguments("piped", {"--train.max_steps=30000", "--eval.every=0",
                                                     "--checkpoint.every=0", "--log.every=1"}))
    words += " '" + word + "'";
  Launch piped(kAlone,
               {"-c", fmt::format("set -o pipefail; '{}'{} 2>&1 | head -n 20", binary(), words)},
               "/bin/bash");
  for (int i = 0; i < 6000 && metrics_lines(at("piped") + "/metrics.jsonl") < 40; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  write_bytes(at("piped") + "/STOP", "");
  const Outcome stopped = piped.wait();
  EXPECT_EQ(stopped.exit_code, 75) << stopped.text();
  const int64_t step = read_json(at("piped") + "/summary.json").find("steps")->as_int64();
  EXPECT_TRUE(fs::exists(checkpoint("piped", step) + "/COMMITTED"));
}

TEST_F(Stop, ADryRunSavesNothing) {
  const Outcome stopped =
      stop("dry", 2, {"--train.max_steps=100000", "--dry-run=100000", "--eval.every=0"}, 20);
  EXPECT_EQ(stopped.exit_code, 75) << stopped.text();
  EXPECT_EQ(names_in(at("dry")), (std::set<std::string>{"metrics.jsonl"}));
}

}  // namespace
}  // namespace utrain
