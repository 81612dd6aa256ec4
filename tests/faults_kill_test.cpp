// Ranks, all ranks and the launcher are killed, and the power goes, at random moments and before
// each call of a save: every run goes on by itself and ends with the bits of an undisturbed one.
#include "faults/fault_run.h"

namespace utrain {
namespace {

constexpr double kOverSeconds = 5.0;

// One moment to die at, drawn: three of five aimed at calls of saves.
std::string random_fault(Campaign& random, int64_t calls_of_rank_0, int64_t calls_of_others) {
  const char* action = random.below(3) == 0 ? "killall" : "kill";
  const auto rank = random.below(4);
  if (random.below(5) < 3) {
    const int64_t calls = rank == 0 ? calls_of_rank_0 : calls_of_others;
    return fmt::format("rank={} call=file path=/checkpoints nth={} do={}", rank,
                       1 + random.below(calls), action);
  }
  const auto run_ms = static_cast<int64_t>(1e3 * FaultRun::reference().seconds);
  return fmt::format("rank={} call=time nth={} do={}", rank, 1 + random.below(run_ms), action);
}

// More than `every` steps are lost only where a save was still under way.
void expect_bounded_loss(const FaultRun& run) {
  const std::vector<int64_t> steps = run.checkpoint_steps();
  const int64_t safe = steps.empty() ? 0 : steps.back();
  EXPECT_LE(run.last_step() - safe, 2 * FaultRun::kEvery);
}

TEST(Killed, AtRandomMomentsARunEndsWithTheSameBits) {
  Campaign campaign("F1 random kills");
  const int wanted = count_of(8, 200);
  FaultRun run;
  const auto of_rank_0 = static_cast<int64_t>(run.calls_of(0, "/checkpoints").size());
  const auto of_others = static_cast<int64_t>(run.calls_of(2, "/checkpoints").size());
  EXPECT_GT(of_rank_0, 50);
  EXPECT_GT(of_others, 20);
  while (campaign.counted("kills") < wanted && !testing::Test::HasFailure()) {
    run.clear();
    const auto in_a_row = 1 + campaign.below(4);
    for (int64_t i = 0; i < in_a_row && campaign.counted("kills") < wanted; ++i) {
      const bool of_launcher = campaign.below(8) == 0;
      const std::string fault = of_launcher ? "" : random_fault(campaign, of_rank_0, of_others);
      SCOPED_TRACE(fmt::format("{} chain step {}", fault, i));
      auto launch = run.start(fault);
      if (of_launcher) {
        std::this_thread::sleep_for(std::chrono::duration<double>(
            FaultRun::reference().seconds * 1e-3 * static_cast<double>(campaign.below(1000))));
        launch->launch().kill_launcher();
      }
      const Outcome outcome = launch->wait();
      const std::vector<Struck> struck = launch->struck();
      const bool died = of_launcher ? outcome.exit_code == 128 + SIGKILL : !struck.empty();
      if (!died) {  // it was done before that moment
        EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
        run.clear();
        continue;
      }
      expect_over_soon(*launch, outcome, kOverSeconds);
      const bool in_save =
          run.has_leftovers() ||
          (!struck.empty() && struck[0].paths.find("/checkpoints/") != std::string::npos);
      campaign.count("kills");
      campaign.count("inside a save", in_save);
      campaign.count("of mpirun", of_launcher);
      EXPECT_TRUE(!of_launcher || launch->are_gone_within(kOverSeconds)) << "orphans are left";
      if (run.is_finished()) break;
      expect_bounded_loss(run);
    }
    run.expect_finishes_as_if_nothing_was();
    campaign.count("runs finished");
  }
  EXPECT_GE(10 * campaign.counted("inside a save"), 3 * campaign.counted("kills"));
}

// "rename /step-.../state.json": a point of the protocol, without what differs from save to save.
std::string point_of(const Struck& call) {
  std::string name;
  for (const char c : call.call + " " + call.paths.substr(0, call.paths.find(' ')))
    if (std::isdigit(static_cast<unsigned char>(c)) == 0) name += c;
  return name;
}

// The calls, counted from 1, that belong to one save late in the run, when older checkpoints go:
// from the first that names its step to the first that names the next one's.
std::vector<int64_t> calls_of_one_save(const std::vector<Struck>& calls) {
  const auto first_of = [&](int step) {
    const std::string name = fmt::format("step-{:08}", step);
    const auto found = std::ranges::find_if(
        calls, [&](const Struck& call) { return call.paths.find(name) != std::string::npos; });
    return found - calls.begin();
  };
  std::vector<int64_t> numbers;
  for (int64_t i = first_of(25); i < first_of(30); ++i) numbers.push_back(i + 1);
  return numbers;
}

TEST(Killed, BeforeEachCallOfASave) {
  Campaign campaign("F2 calls of a save");
  FaultRun run;
  for (const int rank : {0, 3}) {
    const std::vector<Struck> calls = run.calls_of(rank, "/checkpoints");
    std::vector<int64_t> numbers = calls_of_one_save(calls);
    if (!is_full_set()) {  // one call for each point, then some of the points
      std::map<std::string, int64_t> points;
      for (const int64_t nth : numbers) points[point_of(calls[static_cast<size_t>(nth - 1)])] = nth;
      numbers.clear();
      for (const auto& [name, nth] : points) numbers.push_back(nth);
    }
    const auto n = static_cast<int64_t>(numbers.size());
    const int64_t wanted = std::min<int64_t>(n, count_of(rank == 0 ? 6 : 2, 1000));
    ASSERT_GE(n, 3);
    for (int64_t i = 0; i < wanted; ++i) {
      const int64_t nth = numbers[static_cast<size_t>(i * n / wanted)];
      const Struck& call = calls[static_cast<size_t>(nth - 1)];
      SCOPED_TRACE(fmt::format("rank {} before call {}: {} {}", rank, nth, call.call, call.paths));
      run.clear();
      auto launch =
          run.start(fmt::format("rank={} call=file path=/checkpoints nth={} do=kill", rank, nth));
      const Outcome outcome = launch->wait();
      ASSERT_EQ(launch->struck().size(), 1u) << outcome.text();
      expect_over_soon(*launch, outcome, kOverSeconds);
      EXPECT_FALSE(run.checkpoint_steps().empty());
      expect_bounded_loss(run);
      campaign.count("kills");
      run.expect_finishes_as_if_nothing_was();
      EXPECT_FALSE(run.has_leftovers())
          << fmt::format("{}", fmt::join(run.names_in_checkpoints(), " "));
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(Killed, ByAPowerCut) {
  Campaign campaign("F1 power cuts");
  FaultRun run;
  const std::vector<Struck> calls = run.calls_of(0, "/checkpoints");
  const auto n_calls = static_cast<int64_t>(calls.size());
  for (int i = 0; i < count_of(4, 60); ++i) {
    // After the third save, so that one of them must be safe.
    const int64_t nth = n_calls / 2 + campaign.below(n_calls / 2);
    const std::string fault =
        fmt::format("rank=0 call=file path=/checkpoints nth={} do=powercut", nth);
    const uint64_t seed = campaign.seed();
    SCOPED_TRACE(fmt::format("{} seed {}", fault, seed));
    run.clear();
    auto launch = run.start(fault);
    const Outcome outcome = launch->wait();
    ASSERT_EQ(launch->struck().size(), 1u) << outcome.text();
    expect_over_soon(*launch, outcome, kOverSeconds);
    PowerCut cut = launch->power_cut(seed);
    cut.lose_unsynced();
    campaign.count("power cuts");
    campaign.count("files lost", cut.files_lost());
    campaign.count("names lost", cut.names_lost());
    EXPECT_FALSE(run.checkpoint_steps().empty()) << "no checkpoint outlived the cut";
    run.expect_finishes_as_if_nothing_was();
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace utrain
