// The watchdog of a rank, and what becomes of ranks that hang. The test starts itself under mpirun:
// what a rank then does is its role. How it judges: verdict_test.cpp.
#include "comm/watchdog.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <map>

#include "comm/mpi_check.h"
#include "comm/mpi_collectives.h"
#include "comm/world.h"
#include "launch.h"

namespace utrain {
namespace {

constexpr const char* kRole = "UTRAIN_WATCHDOG_ROLE";
constexpr double kOver = 3.0;  // s after the timeout

void sleep_ms(int64_t ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

// ---- a watchdog alone ----

TEST(Watchdog, GivesStepsTenTimesTheSlowestAndAllElseTheWhole) {
  Watchdog watchdog(0, 0, "this");
  const auto board = std::make_shared<Board>("", 1);
  watchdog.join(board, {0, 0, 0, 1, {}});
  const auto limit_in = [&](RunPhase phase) {
    watchdog.enter(phase, 1);
    EXPECT_EQ(1000.0 * watchdog.limit(), board->slot(0).limit_ms);
    return board->slot(0).limit_ms / 1000;
  };
  EXPECT_EQ(limit_in(RunPhase::start), 600);
  EXPECT_EQ(limit_in(RunPhase::step), 600) << "no step is known";
  watchdog.step_took(0.5);
  EXPECT_EQ(limit_in(RunPhase::step), 60);
  watchdog.step_took(20.0);
  watchdog.step_took(1.0);
  EXPECT_EQ(limit_in(RunPhase::step), 200);
  watchdog.step_took(100.0);
  EXPECT_EQ(limit_in(RunPhase::step), 600);
  for (const RunPhase phase : {RunPhase::load, RunPhase::evaluate, RunPhase::save, RunPhase::end})
    EXPECT_EQ(limit_in(phase), 600);
  watchdog.set_timeout(7);
  for (const RunPhase phase : {RunPhase::step, RunPhase::save}) EXPECT_EQ(limit_in(phase), 7);
}

TEST(Watchdog, NumbersCalls) {
  Watchdog watchdog(0, 0, "this");
  const auto board = std::make_shared<Board>("", 2);
  watchdog.join(board, {3, 1, 0, 1, {}});
  const RankSlot& slot = board->slot(1);
  watchdog.enter(RunPhase::step, 5);
  const int64_t before = slot.n_signs;
  {
    const Watchdog::InCall call(watchdog, CallKind::all_gather, 12);
    const Stamp s = slot.stamp();
    EXPECT_EQ(place_text(s), "step 5, in collective 1 (all-gather of 12 elements)");
  }
  EXPECT_EQ(place_text(slot.stamp()), "step 5, after collective 1 (all-gather of 12 elements)");
  watchdog.progress();
  EXPECT_EQ(slot.n_signs, before + 3);
  EXPECT_EQ(board->slot(0).state, RankSlot::absent);
  EXPECT_EQ(slot.state, RankSlot::here);
}

TEST(Watchdog, CountsHowOftenItsRankLooksForOthers) {
  Watchdog watchdog(0, 0, "this");
  const auto board = std::make_shared<Board>("", 1);
  watchdog.join(board, {0, 0, 0, 1, {}});
  const Watchdog::InCall call(watchdog, CallKind::barrier);
  const int64_t n_polls = board->slot(0).n_polls, n_signs = board->slot(0).n_signs;
  for (int i = 0; i < 3; ++i) watchdog.waits();
  EXPECT_EQ(board->slot(0).n_polls, n_polls + 3);
  EXPECT_EQ(board->slot(0).n_signs, n_signs) << "to wait is no progress";
}

TEST(Watchdog, WatchesADirectoryThatStandsStill) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "heartbeats");
  ASSERT_EQ(::mkfifo((dir / "heartbeats/rank-00000").c_str(), 0600), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    Watchdog watchdog(1, 0, "this");
    watchdog.join(std::make_shared<Board>("", 1), {0, 0, 0, 2, {1}});
    watchdog.set_directory(dir.str());  // opens the pipe, which nobody reads
    ::_exit(0);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status)) << "nobody ended it";
  EXPECT_EQ(WEXITSTATUS(status), 70);
}

// ---- ranks that hang ----

bool sleeps_before_sending = false, sleeps_before_agreeing = false;

// What a rank does after all have met; with T s, in a run directory.
using Role = void (*)(const World& world, const std::string& dir);

void wait_for_all(const World& world) {
  std::vector<float> x(5000);
  MpiCollectives(world).all_reduce_sum(make_tensor(x.data(), DType::f32, 1, 5000));
}

const std::map<std::string, Role> kRoles = {
    {"skips a call",
     [](const World& world, const std::string&) {
       world.watchdog().enter(RunPhase::step, 17);
       if (world.rank() == 2) sleep_ms(60000);
       wait_for_all(world);
     }},
    {"sleeps in a call",
     [](const World& world, const std::string&) {
       world.watchdog().enter(RunPhase::step, 17);
       wait_for_all(world);
       sleeps_before_sending = world.rank() == 2;
       wait_for_all(world);
     }},
    {"sleeps in an agreement",
     [](const World& world, const std::string&) {
       world.together([] {});
       sleeps_before_agreeing = world.rank() == 1;
       world.together([] {});
     }},
    {"stops",
     [](const World& world, const std::string&) {
       world.watchdog().enter(RunPhase::step, 17);
       if (world.rank() == 3) ::raise(SIGSTOP);
       wait_for_all(world);
     }},
    {"leaves without the others",
     [](const World& world, const std::string&) {
       if (world.rank() != 1) wait_for_all(world);
     }},
    {"cannot open a file",
     [](const World& world, const std::string& dir) {
       world.watchdog().enter(RunPhase::save, 2);
       world.first_rank([&] {
         ::mkfifo((dir + "/fifo").c_str(), 0600);
         ::open((dir + "/fifo").c_str(), O_RDONLY);
       });
     }},
    {"cannot be heard",
     [](const World& world, const std::string&) {
       world.watchdog().at_hang(&world, [] { sleep_ms(60000); });  // an abort that hangs as well
       if (world.rank() == 0) ::raise(SIGSTOP);
       wait_for_all(world);
     }},
    {"is slow",
     [](const World& world, const std::string&) {
       for (int step = 1; step <= 2; ++step) {
         world.watchdog().enter(RunPhase::step, step);
         if (world.rank() == 1) sleep_ms(4000);
         wait_for_all(world);
       }
     }},
    {"is busy",
     [](const World& world, const std::string&) {
       world.first_rank([&] {
         for (int i = 0; i < 35; ++i) sleep_ms(100), world.watchdog().progress();
       });
     }},
    {"writes",
     [](const World& world, const std::string& dir) {
       world.watchdog().enter(RunPhase::save, 3);
       world.first_rank([&] {
         std::ofstream file(dir + "/file");
         for (int i = 0; i < 18; ++i)
           sleep_ms(200), file << std::string(3 << 20, 'x') << std::flush;
       });
     }},
    {"is held up",
     [](const World& world, const std::string& dir) {
       world.watchdog().enter(RunPhase::step, 5);
       if (world.rank() == 0) {
         write_bytes(dir + "/begun", "");
         while (!std::filesystem::exists(dir + "/go on")) sleep_ms(5);
       }
       wait_for_all(world);
     }},
    {"stops at the end",
     [](const World& world, const std::string&) {
       world.watchdog().enter(RunPhase::end, 20);
       world.barrier();
       if (world.rank() == 1) ::raise(SIGSTOP);
     }},
};

// arguments: role, T, run directory or -, ranks a node
int run_rank(int argc, char** argv) {
  const std::string role = argv[1], dir = argv[3][0] == '-' ? "" : argv[3];
  const int64_t timeout = std::atoi(argv[2]);
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (role == "stops before MPI" && std::string(rank) == "1") ::raise(SIGSTOP);
  const World world(&argc, &argv, {.ranks_per_node = std::atoi(argv[4]), .hang_timeout = timeout});
  if (!dir.empty()) world.watch_in(dir);
  world.name_device(fmt::format("GPU {}, Tester", world.rank()));
  if (const auto found = kRoles.find(role); found != kRoles.end()) found->second(world, dir);
  return 0;
}

Launch start(const std::string& role, int timeout, const std::string& dir, int node = 0) {
  ::setenv(kRole, "1", 1);
  return Launch(4, {role, std::to_string(timeout), dir.empty() ? "-" : dir, std::to_string(node)},
                std::filesystem::read_symlink("/proc/self/exe").string());
}

// One line with all the words; files of these ranks, and of a stopped one that mpirun lets go on.
void expect_hang(const Outcome& run, double limit, const std::vector<std::string>& words,
                 const std::string& dir = "", const std::vector<int>& writers = {}) {
  EXPECT_EQ(run.exit_code, 70) << run.text();
  EXPECT_LT(run.seconds, limit) << run.text();
  const std::vector<std::string> lines = run.error_lines();
  ASSERT_EQ(lines.size(), 1u) << run.text();
  for (const std::string& word : words)
    EXPECT_NE(lines[0].find(word), std::string::npos) << word << "\n" << lines[0];
  if (dir.empty()) return;
  for (const int r : writers) {
    const std::string path = fmt::format("{}/crash/rank-{:05}.txt", dir, r);
    ASSERT_TRUE(std::filesystem::exists(path)) << path;
    EXPECT_EQ(read_bytes(path).rfind(fmt::format("# rank {} on ", r), 0), 0u);
    EXPECT_NE(read_bytes(path).find("agreement"), std::string::npos) << read_bytes(path);
  }
}

constexpr double kStart = 3.0;  // s to start four ranks on a busy machine
TEST(Hang, ARankThatSkipsACall) {
  const TempDir dir;
  expect_hang(start("skips a call", 2, dir.str()).wait(), kStart + 2 + kOver,
              {"rank 2 on ", "(GPU 2, Tester): no progress for 2 s in step 17, after collective ",
               ", ranks 0, 1, 3 wait in collective ", "(all-reduce of 5,000 elements); look"},
              dir.str(), {0, 1, 2, 3});
  EXPECT_NE(read_bytes(dir / "crash/rank-00001.txt").find("not over  step 17, in collective"),
            std::string::npos);
}

TEST(Hang, ARankThatSleepsInACall) {
  const TempDir dir;
  expect_hang(start("sleeps in a call", 2, dir.str()).wait(), kStart + 2 + kOver,
              {"rank 2 on ", "the main thread is stuck", "in step 17, in collective ",
               "(all-reduce of 5,000 elements), ranks 0, 1, 3 wait in collective "},
              dir.str(), {0, 1, 2, 3});
  expect_hang(start("sleeps in an agreement", 2, "").wait(), kStart + 2 + kOver,
              {"rank 1 on ", "the main thread is stuck", "ranks 0, 2, 3 wait in collective "});
}

TEST(Hang, AStoppedRank) {
  const TempDir dir;
  expect_hang(start("stops", 2, dir.str()).wait(), kStart + 2 + kOver,
              {"rank 3 on ", "the process stands still", "step 17"}, dir.str(), {0, 1, 2});
}

TEST(Hang, ARankThatLeaves) {
  const TempDir dir;
  expect_hang(start("leaves without the others", 2, dir.str()).wait(), kStart + 2 + kOver,
              {"rank 1 on ", "in collective 11 (end of MPI)", "made different calls"}, dir.str(),
              {0, 1, 2, 3});
}

TEST(Hang, ABlockedFileSystem) {
  const TempDir dir;
  expect_hang(start("cannot open a file", 2, dir.str()).wait(), kStart + 2 + kOver,
              {"rank 0 on ", "no progress for 2 s in save at step 2, after", "ranks 1, 2, 3 wait"},
              dir.str(), {0, 1, 2, 3});
}

TEST(Hang, WhatIsDoneLastDoesNotHinder) {
  const TempDir dir;
  expect_hang(start("cannot be heard", 2, dir.str()).wait(), kStart + 2 + kOver,
              {"rank 0 on ", "the process stands still"}, dir.str(), {1, 2, 3});
}

TEST(Hang, AtTheEnd) {
  const TempDir dir;
  expect_hang(start("stops at the end", 2, dir.str()).wait(), kStart + 2 + kOver,
              {"rank 1 on ", "the process stands still", "end at step 20", "end of MPI"}, dir.str(),
              {0, 2, 3});
}

// Nodes that do not know of each other may say it each, until they are ended.
void expect_said(const Outcome& run, const std::string& words, size_t most) {
  EXPECT_TRUE(run.exit_code == 70 && run.seconds < kStart + 2 + kOver) << run.text();
  const bool said = run.err.find(words) != std::string::npos;
  EXPECT_TRUE(said && run.error_lines().size() <= most) << run.text();
}

TEST(Hang, BeforeMpi) {
  expect_said(start("stops before MPI", 2, "").wait(),
              " in start: MPI has not brought the ranks together", 1);
}

TEST(Hang, OnSeveralNodes) {
  const TempDir dir;
  expect_hang(start("stops", 4, dir.str(), 2).wait(), kStart + 4 + kOver,
              {"rank 3 on ", "the process stands still", "ranks 0, 1, 2 wait in"}, dir.str(),
              {0, 1, 2});
  EXPECT_EQ(std::filesystem::file_size(dir / "heartbeats/rank-00003"), 64u);
  EXPECT_EQ(read_bytes(dir / "crash/hang.txt").rfind("rank 3 on ", 0), 0u);
}

TEST(Hang, OnSeveralNodesASleepingRank) {
  const TempDir dir;
  expect_hang(start("skips a call", 4, dir.str(), 2).wait(), kStart + 4 + kOver,
              {"rank 2 on ", "step 17, after", "ranks 0, 1, 3 wait in"}, dir.str(), {0, 1, 2, 3});
}

TEST(Hang, OnSeveralNodesARankThatSleepsInACall) {
  const TempDir dir;
  expect_hang(start("sleeps in a call", 4, dir.str(), 2).wait(), kStart + 4 + kOver,
              {"rank 2 on ", "the main thread is stuck", "ranks 0, 1, 3 wait in"}, dir.str(),
              {0, 1, 2, 3});
}

TEST(Hang, OnSeveralNodesWithoutADirectory) {
  expect_said(start("skips a call", 2, "", 2).wait(), "rank 2 on ", 2);
}

void expect_no_hang(const Outcome& run, double least_seconds) {
  EXPECT_EQ(run.exit_code, 0) << run.text();
  EXPECT_GT(run.seconds, least_seconds);
}

TEST(Hang, SlowIsAMatterOfTheTimeout) {
  expect_hang(start("is slow", 2, "").wait(), kStart + 2 + kOver, {"rank 1 on ", "in step 1"});
  expect_no_hang(start("is slow", 10, "").wait(), 4.0);
}

TEST(NoHang, WhoeverShowsProgressMayBeWaitedForLonger) {
  const TempDir dir, dir_of_two;
  Launch one_node = start("is busy", 2, dir.str());
  Launch two_nodes = start("is busy", 2, dir_of_two.str(), 2);
  for (Launch* launch : {&one_node, &two_nodes}) expect_no_hang(launch->wait(), 3.5);
}

TEST(NoHang, AFileMayBeLong) {
  const TempDir dir;
  expect_no_hang(start("writes", 2, dir.str()).wait(), 3.5);
}

// As batch systems do that put a job aside: of the time in which all stand still nothing counts,
// though rank 0 was in the middle of something and gives no sign for a while.
TEST(NoHang, ASuspendedJobGoesOn) {
  const TempDir dir;
  Launch launch = start("is held up", 3, dir.str());
  while (launch.is_running() && !std::filesystem::exists(dir / "begun")) sleep_ms(2);
  sleep_ms(300);  // the watchdogs have seen it
  for (int r = 0; r < 4; ++r) launch.send(r, SIGSTOP);
  sleep_ms(3500);
  for (int r = 0; r < 4; ++r) launch.send(r, SIGCONT);
  sleep_ms(1000);  // longer than a verdict needs
  write_bytes(dir / "go on", "");
  expect_no_hang(launch.wait(), 3.5);
}

}  // namespace
}  // namespace utrain

// In the place of MPI's own, which are PMPI_*.
extern "C" int MPI_Isend(const void* data, int n, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  if (utrain::sleeps_before_sending) utrain::sleep_ms(60000);
  return PMPI_Isend(data, n, type, to, tag, comm, request);
}
extern "C" int MPI_Iallreduce(const void* from, void* to, int n, MPI_Datatype type, MPI_Op op,
                              MPI_Comm comm, MPI_Request* request) {
  if (utrain::sleeps_before_agreeing) utrain::sleep_ms(60000);
  return PMPI_Iallreduce(from, to, n, type, op, comm, request);
}

int main(int argc, char** argv) {
  if (std::getenv(utrain::kRole) != nullptr) return utrain::run_rank(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
