// Each reason to stop, and what a second signal does.
#include "app/stop.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <thread>

#include "io_files.h"

namespace utrain {
namespace {

// SLURM_JOB_END_TIME for the life of the object; "" = not set.
class SlurmEnd {
 public:
  explicit SlurmEnd(const std::string& text) {
    if (text.empty())
      ::unsetenv(kName);
    else
      ::setenv(kName, text.c_str(), 1);
  }
  explicit SlurmEnd(int64_t seconds_from_now)
      : SlurmEnd(std::to_string(std::time(nullptr) + seconds_from_now)) {}
  ~SlurmEnd() { ::unsetenv(kName); }

 private:
  static constexpr const char* kName = "SLURM_JOB_END_TIME";
};

void sleep_ms(int64_t ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

int n_handled = 0;
void count_signal(int) {
  ++n_handled;
}

TEST(StopRequest, GoesOnWithoutAReason) {
  const SlurmEnd none("");
  const TempDir dir;
  StopRequest stop;
  EXPECT_EQ(stop.reason(), "");
  stop.limit_time(0.0);
  stop.look_into(dir.str());
  EXPECT_EQ(stop.reason(), "");
  stop.limit_time(1e300);
  EXPECT_EQ(stop.reason(), "");
}

TEST(StopRequest, HearsEachSignalOnceAndGivesItBack) {
  for (const auto& [signal, name] :
       {std::pair{SIGUSR1, "SIGUSR1"}, {SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}}) {
    n_handled = 0;
    const auto before = std::signal(signal, count_signal);
    {
      StopRequest stop;
      EXPECT_EQ(stop.reason(), "");
      std::raise(signal);
      std::raise(signal);  // forwarded twice
      EXPECT_EQ(stop.reason(), name);
      EXPECT_EQ(stop.reason(), name);
    }
    EXPECT_EQ(n_handled, 0);
    std::raise(signal);
    EXPECT_EQ(n_handled, 1) << name << " was not given back";
    std::signal(signal, before);
    StopRequest next;
    EXPECT_EQ(next.reason(), "") << "the signal of an earlier run";
  }
}

TEST(StopRequest, ASignalWhileLoadingIsAReasonAtTheFirstStep) {
  const TempDir dir;
  StopRequest stop;
  std::raise(SIGUSR1);
  stop.limit_time(1.0);
  stop.look_into(dir.str());
  EXPECT_EQ(stop.reason(), "SIGUSR1");
}

TEST(StopRequest, ASignalBeforeItIsOneOfItsReasons) {
  StopSignals early;
  std::raise(SIGTERM);
  {
    StopRequest stop;
    EXPECT_EQ(stop.reason(), "SIGTERM");
  }
  sleep_ms(10);
  std::raise(SIGTERM);  // still taken
}

TEST(StopRequestDeathTest, SignalsGivenBackDoWhatTheyDo) {
  const auto give_back = [](bool early, bool late) {
    StopSignals signals;
    if (early) std::raise(SIGUSR1);
    signals.give_back();
    if (late) std::raise(SIGUSR1);
    _exit(0);
  };
  EXPECT_EXIT(give_back(true, false), testing::KilledBySignal(SIGUSR1), "");
  EXPECT_EXIT(give_back(false, true), testing::KilledBySignal(SIGUSR1), "");
  EXPECT_EXIT(give_back(false, false), testing::ExitedWithCode(0), "");
}

// In a process of its own: what it exits with.
TEST(StopRequestDeathTest, ASecondSignalLeavesAtOnce) {
  for (const auto& [first, second] :
       {std::pair{SIGUSR1, SIGUSR1}, {SIGINT, SIGINT}, {SIGUSR1, SIGTERM}}) {
    EXPECT_EXIT(
        {
          StopRequest stop;
          std::raise(first);
          sleep_ms(2 * StopSignals::kSameSignal.count());
          std::raise(second);
          _exit(0);
        },
        testing::ExitedWithCode(128 + second), "");
  }
}

TEST(StopRequest, MaxHoursCountFromTheStartOfTheProcess) {
  const SlurmEnd none("");
  StopRequest stop;
  stop.limit_time(1e-9);
  EXPECT_EQ(stop.reason(), "run.max_hours = 1e-09 reached");
  stop.limit_time(1.0);
  EXPECT_EQ(stop.reason(), "run.max_hours = 1e-09 reached") << "a reason stays";
}

TEST(StopRequest, StopsFiveMinutesBeforeTheSlurmJobEnds) {
  const auto reason_at = [](double max_hours) {
    StopRequest stop;
    stop.limit_time(max_hours);
    return stop.reason();
  };
  {
    const SlurmEnd in_an_hour(int64_t{3600});
    EXPECT_EQ(reason_at(0.0), "");
  }
  for (const char* text : {"", "Unknown", "17e9", "-5", "1000"}) {  // the last: a job long gone
    const SlurmEnd odd(text);
    EXPECT_EQ(reason_at(0.0), "") << text;
  }
  const SlurmEnd soon(int64_t{4});  // a short job: a quarter of its time
  StopRequest stop;
  stop.limit_time(0.0);
  EXPECT_EQ(stop.reason(), "");
  sleep_ms(3200);
  EXPECT_EQ(stop.reason(), "the Slurm job ends in 1 s");
  EXPECT_EQ(reason_at(1e6), "") << "max_hours counts where it is given";
}

TEST(StopRequest, TheFileStopIsSeenWithinASecondAndGoesWithTheRun) {
  const TempDir dir;
  const std::string file = dir / "STOP";
  {
    StopRequest stop;
    EXPECT_EQ(stop.reason(), "");
    stop.look_into(dir.str());
    EXPECT_EQ(stop.reason(), "");
    write_bytes(file, "");
    sleep_ms(1100);
    EXPECT_EQ(stop.reason(), "file " + file);
    EXPECT_TRUE(std::filesystem::exists(file)) << "not obeyed yet";
  }
  EXPECT_FALSE(std::filesystem::exists(file));
  StopRequest next;
  next.look_into(dir.str());
  EXPECT_EQ(next.reason(), "");
}

TEST(StopRequest, AFileStopThatNobodySawStays) {
  const TempDir dir;
  {
    StopRequest stop;
    std::raise(SIGUSR1);
    stop.look_into(dir.str());
    write_bytes(dir / "STOP", "");
    EXPECT_EQ(stop.reason(), "SIGUSR1");
  }
  EXPECT_TRUE(std::filesystem::exists(dir / "STOP"));
}

}  // namespace
}  // namespace utrain
