// The fault library itself, on a small program that saves as utrain does (faults/stand_in.cpp):
// each fault strikes the call that was meant, once, and a power cut takes what was not synced and
// nothing else.
#include "faults/fault_launch.h"

namespace utrain {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

class FaultLibrary : public testing::Test {
 protected:
  FaultLibrary() {
    const char* given = std::getenv("UTRAIN_FAULT_STAND_IN");
    ::setenv("UTRAIN_BINARY", given != nullptr ? given : UTRAIN_FAULT_STAND_IN, 1);
  }
  ~FaultLibrary() override {
    if (before_.empty())
      ::unsetenv("UTRAIN_BINARY");
    else
      ::setenv("UTRAIN_BINARY", before_.c_str(), 1);
  }

  std::string run_dir() const { return fs::canonical(dir_.str()).string() + "/run"; }
  Outcome run(const std::string& faults, const Words& more = {}) {
    fs::remove_all(run_dir());
    Words words = {run_dir(), "4"};
    words.insert(words.end(), more.begin(), more.end());
    launch_.emplace(2, words, run_dir(), faults);
    return launch_->wait(30.0);
  }
  // Saves that are there whole.
  int whole_saves() const {
    int n = 0;
    for (int i = 1; i <= 4; ++i) {
      const std::string at = run_dir() + fmt::format("/save-{}", i);
      n += read_bytes(at + "/a") == std::string(5000, 'a') &&
           read_bytes(at + "/b") == std::string(300, 'b');
    }
    return n;
  }
  int named_saves() const {
    int n = 0;
    for (int i = 1; i <= 4; ++i) n += fs::exists(run_dir() + fmt::format("/save-{}", i));
    return n;
  }
  void expect_struck(int rank, const std::string& call, const std::string& path) {
    const std::vector<Struck> struck = launch_->struck();
    ASSERT_EQ(struck.size(), 1u);
    EXPECT_EQ(struck[0].rank, rank);
    EXPECT_EQ(struck[0].call, call);
    EXPECT_NE(struck[0].paths.find(path), std::string::npos) << struck[0].paths;
  }

  TempDir dir_;
  std::optional<FaultLaunch> launch_;
  const std::string before_ =
      std::getenv("UTRAIN_BINARY") != nullptr ? std::getenv("UTRAIN_BINARY") : "";
};

TEST_F(FaultLibrary, WithoutAFaultNothingHappens) {
  const Outcome outcome = run("");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_EQ(whole_saves(), 4);
  EXPECT_TRUE(launch_->struck().empty());
}

TEST_F(FaultLibrary, KillsBeforeTheNamedCall) {
  struct Point {
    const char *fault, *call, *path;
    int saves;
    bool temp;
  };
  const std::vector<Point> points = {
      {"rank=0 call=mkdir path=/tmp nth=1 do=kill", "mkdir", "/tmp", 0, false},
      {"rank=0 call=create path=tmp/b nth=2 do=kill", "create", "/tmp/b", 1, true},
      {"rank=0 call=write path=tmp/ nth=4 do=kill", "write", "/tmp/b", 1, true},
      {"rank=0 call=fsync path=/tmp nth=3 do=kill", "fsync", "/tmp", 0, true},
      {"rank=0 call=rename path=save-3 nth=1 do=killall", "rename", "/save-3", 2, true},
      {"rank=1 call=MPI_Allreduce nth=3 do=kill", "MPI_Allreduce", "", 2, false},
  };
  for (const Point& point : points) {
    SCOPED_TRACE(point.fault);
    const Outcome outcome = run(point.fault);
    EXPECT_NE(outcome.exit_code, 0) << outcome.text();
    expect_struck(point.fault[5] - '0', point.call, point.path);
    EXPECT_EQ(whole_saves(), point.saves);
    EXPECT_EQ(fs::exists(run_dir() + "/tmp"), point.temp);
  }
}

TEST_F(FaultLibrary, CallsFailAsAFullOrBrokenDiskDoes) {
  for (const auto& [call, error] : {std::pair{"write", "enospc"},
                                    {"fsync", "eio"},
                                    {"mkdir", "edquot"},
                                    {"create", "enospc"},
                                    {"rename", "eio"}}) {
    const Outcome outcome = run(fmt::format("rank=0 call={} nth=2 do={}", call, error));
    EXPECT_EQ(outcome.exit_code, 74) << call << " " << error << "\n" << outcome.text();
    EXPECT_EQ(launch_->struck().size(), 1u);
  }
  EXPECT_EQ(run("rank=1 call=MPI_Allreduce nth=2 do=eio").exit_code, 70);
  EXPECT_EQ(run("rank=1 call=MPI_Allreduce nth=2 do=exit:9").exit_code, 9);
}

TEST_F(FaultLibrary, LiesAboutWhatWasWritten) {
  EXPECT_EQ(run("rank=0 call=write path=tmp/a nth=2 do=flip").exit_code, 0);
  EXPECT_EQ(whole_saves(), 3);
  EXPECT_EQ(fs::file_size(run_dir() + "/save-2/a"), 5000u);
  EXPECT_EQ(run("rank=0 call=write path=tmp/a nth=2+ do=halve").exit_code, 0);
  EXPECT_EQ(whole_saves(), 1);
  EXPECT_EQ(fs::file_size(run_dir() + "/save-4/a"), 2500u);
}

TEST_F(FaultLibrary, StopsSleepsAndSignals) {
  run("rank=1 call=MPI_Barrier nth=2 do=sleep:0.7");
  EXPECT_EQ(whole_saves(), 4);
  const Outcome slept = run("rank=1 call=MPI_Barrier nth=2 do=sleep:1.5");
  EXPECT_GT(slept.seconds, 1.5);
  EXPECT_NE(
      run("rank=0 call=time nth=1 do=signal:11; rank=0 call=MPI_Barrier do=sleep:1").exit_code, 0);

  fs::remove_all(run_dir());
  FaultLaunch stopped(2, {run_dir(), "4"}, run_dir(), "rank=1 call=MPI_Barrier nth=2 do=stop");
  for (int i = 0; i < 1000 && stopped.struck().empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_TRUE(stopped.launch().is_running());
  ::kill(stopped.pid_of(1), SIGCONT);
  EXPECT_EQ(stopped.wait(30.0).exit_code, 0);
}

// Whatever the seed: a save that was told is whole, what was not synced may be gone.
TEST_F(FaultLibrary, APowerCutTakesOnlyWhatWasNotSynced) {
  int lost = 0;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    SCOPED_TRACE(seed);
    run(fmt::format("rank=0 call=file nth={} do=powercut", 20 + 2 * seed));
    ASSERT_EQ(launch_->struck().size(), 1u);
    const int before = named_saves();
    PowerCut cut = launch_->power_cut(seed);
    cut.lose_unsynced();
    EXPECT_GE(named_saves(), before - 1) << "renamed and not yet synced";
    EXPECT_EQ(whole_saves(), named_saves());
    lost += cut.files_lost() + cut.names_lost();
  }
  EXPECT_GT(lost, 0);
}

TEST_F(FaultLibrary, APowerCutShowsAMissingSync) {
  int without_data = 0, without_names = 0;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    for (const char* left_out : {"no-fsync", "no-dir-fsync"}) {
      run("rank=1 call=MPI_Finalize do=powercut", {left_out});
      EXPECT_EQ(whole_saves(), 4);
      launch_->power_cut(seed).lose_unsynced();
      (left_out == std::string("no-fsync") ? without_data : without_names) += 4 - whole_saves();
    }
  }
  EXPECT_EQ(without_data, 12) << "no save is whole without its data";
  EXPECT_GT(without_names, 0);
}

}  // namespace
}  // namespace utrain
