// What the watchdog makes of what it sees: who is named, when, and with which words.
#include "comm/verdict.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace utrain {
namespace {

RankView in_call(int rank, int64_t number, double silent, int64_t n_elem = 100) {
  return {rank, {RunPhase::step, 7, number, CallKind::all_reduce, n_elem, true}, 5.0, silent};
}
RankView after_call(int rank, int64_t number, double silent) {
  RankView view = in_call(rank, number, silent);
  view.stamp.inside = false;
  return view;
}

int suspect_of(const std::vector<RankView>& views) {
  const auto verdict = judge(views);
  return verdict ? views[verdict->suspect].rank : -1;
}

TEST(Verdict, WaitsForWhoeverShowsProgress) {
  EXPECT_EQ(suspect_of({}), -1);
  EXPECT_EQ(suspect_of({in_call(0, 3, 4.9)}), -1);
  EXPECT_EQ(suspect_of({in_call(0, 3, 5.0)}), 0);
  EXPECT_EQ(suspect_of({in_call(0, 3, 900.0), after_call(1, 2, 0.1)}), -1) << "1 saves, 0 waits";
  EXPECT_EQ(suspect_of({in_call(0, 3, 900.0), after_call(1, 2, 5.1)}), 1);
  EXPECT_EQ(suspect_of({in_call(0, 3, 9.0), in_call(1, 3, 4.0)}), -1) << "1 has just come";
  EXPECT_EQ(suspect_of({in_call(0, 3, 6.0), after_call(1, 4, 0.0)}), 0) << "1 goes on alone";
  EXPECT_EQ(suspect_of({after_call(0, 3, 0.1), after_call(1, 3, 5.0)}), 1) << "0 is busy, 1 is not";
  EXPECT_EQ(suspect_of({after_call(0, 3, 0.1), in_call(1, 3, 9.0)}), -1);
  std::vector<RankView> views = {after_call(0, 3, 0.1), in_call(1, 4, 3.0)};
  views[1].is_still = true;
  views[1].still = 4.9;
  EXPECT_EQ(suspect_of(views), -1);
  views[1].still = 5.0;
  EXPECT_EQ(suspect_of(views), 1) << "the whole process stands still";
}

TEST(Verdict, NamesTheFirstSuspect) {
  EXPECT_EQ(suspect_of({in_call(0, 9, 9.0), in_call(1, 8, 5.0), in_call(2, 9, 9.0)}), 1);
  EXPECT_EQ(suspect_of({in_call(0, 8, 9.0), after_call(1, 8, 5.0)}), 1) << "0 still waits for it";
  EXPECT_EQ(suspect_of({in_call(0, 8, 6.0), in_call(1, 8, 7.0), in_call(2, 8, 7.0)}), 1);
  std::vector<RankView> views = {in_call(0, 8, 6.0), in_call(1, 8, 7.0), in_call(2, 9, 5.5)};
  views[2].is_still = true;
  EXPECT_EQ(suspect_of(views), 2) << "who stands still is waited for, wherever";
  views[0].is_still = true;
  EXPECT_EQ(suspect_of(views), 0);
}

TEST(Verdict, TellsWhoIsStuckInACallFromWhoWaitsInIt) {
  std::vector<RankView> views = {in_call(0, 8, 9.0), in_call(1, 8, 9.0), in_call(2, 8, 6.0)};
  views[2].is_stuck = true;
  EXPECT_EQ(suspect_of(views), 2);
  const std::string text = verdict_text(*judge(views), views, {}, "");
  EXPECT_NE(text.find("rank 2 on an unknown host: the main thread is stuck, no progress for 6 s in "
                      "step 7, in collective 8 (all-reduce of 100 elements), ranks 0, 1 wait in "
                      "collective 8 ("),
            std::string::npos)
      << text;
  views[1].stamp.number = 7;
  EXPECT_EQ(suspect_of(views), 2) << "1 waits, for whomever";
  views[2].silent = 4.0;
  EXPECT_EQ(suspect_of(views), 1) << "2 may have just come";
  views[0].is_still = true;
  EXPECT_EQ(suspect_of(views), 0);
  for (RankView& view : views) view = in_call(view.rank, 8, 6.0), view.is_stuck = true;
  EXPECT_EQ(suspect_of(views), 0) << "all alike";
  views[0].stamp.number = 9;
  EXPECT_EQ(suspect_of(views), 1);
}

TEST(Verdict, NamesWhoMadeAnotherCall) {
  const std::vector<RankView> views = {in_call(0, 8, 9.0), in_call(1, 8, 8.0),
                                       in_call(2, 8, 6.0, 99)};
  const auto verdict = judge(views);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->suspect, 2u);
  EXPECT_NE(verdict_text(*verdict, views, {}, "").find("different calls"), std::string::npos);

  EXPECT_EQ(suspect_of({in_call(0, 8, 9.0), in_call(1, 8, 8.0), in_call(2, 9, 6.0)}), 2)
      << "2 cannot have left what 0 and 1 are in";
  EXPECT_EQ(suspect_of({in_call(0, 8, 9.0), in_call(1, 9, 8.0), in_call(2, 9, 6.0)}), 0);
  EXPECT_EQ(suspect_of({in_call(0, 8, 9.0), in_call(1, 8, 8.0), in_call(2, 9, 4.0)}), 0);
  std::vector<RankView> sent = {in_call(0, 8, 9.0), in_call(1, 8, 8.0), in_call(2, 9, 6.0)};
  for (RankView& view : sent) view.stamp.kind = CallKind::broadcast;
  EXPECT_EQ(suspect_of(sent), 0) << "a root goes ahead";
  for (RankView& view : sent) view.stamp.kind = CallKind::connect;
  EXPECT_EQ(suspect_of(sent), 0) << "2 could not connect, and goes to say so";
}

TEST(Verdict, NamesWhoHasNotComeToWhatTheLibraryWaitsFor) {
  std::vector<RankView> views = {in_call(0, 4, 6.0, 0), after_call(1, 3, 6.1),
                                 in_call(2, 4, 6.0, 0)};
  for (RankView& view : views) view.stamp.kind = CallKind::connect;
  EXPECT_EQ(suspect_of(views), 1);
  const std::string text = verdict_text(*judge(views), views, {}, "");
  EXPECT_NE(text.find("ranks 0, 2 wait in collective 4 (connecting NCCL)"), std::string::npos)
      << text;
  for (const CallKind kind : {CallKind::connect, CallKind::split, CallKind::finalize})
    EXPECT_FALSE(is_polled({.kind = kind, .inside = true}));
  for (const CallKind kind : {CallKind::all_reduce, CallKind::agree, CallKind::leave})
    EXPECT_TRUE(is_polled({.kind = kind, .inside = true}));
}

TEST(Verdict, IsOneLineThatSaysWhoWhereAndWhatToDo) {
  std::vector<RankView> views = {in_call(0, 123, 6.2, 4194304), after_call(1, 122, 6.4),
                                 in_call(2, 123, 6.2, 4194304)};
  const std::vector<std::string> places = {"a (GPU 0, X)", "a (GPU 1, Y)", "b (GPU 0, Z)"};
  const auto text = [&] { return verdict_text(*judge(views), views, places, "run/crash"); };
  EXPECT_EQ(text(),
            "rank 1 on a (GPU 1, Y): no progress for 6 s in step 7, after collective 122 "
            "(all-reduce of 100 elements), ranks 0, 2 wait in collective 123 (all-reduce of "
            "4,194,304 elements); look there at the GPU (nvidia-smi), the file system and dmesg, "
            "or raise run.hang_timeout if it was only slow (last calls of the ranks: run/crash)");
  views = {in_call(0, 1, 6.0)};
  views[0].is_still = true;
  views[0].stamp = {};
  EXPECT_EQ(text(),
            "rank 0 on a (GPU 0, X): the process stands still, no progress for 6 s in start; look "
            "there for a stopped or swapping process, a debugger, or a lost node, or raise "
            "run.hang_timeout if it was only slow (last calls of the ranks: run/crash)");
  views.clear();
  for (int r = 0; r < 20; ++r) views.push_back(r == 3 ? after_call(r, 1, 7.0) : in_call(r, 2, 7.0));
  EXPECT_NE(text().find(", 19 ranks wait in"), std::string::npos) << text();
}

}  // namespace
}  // namespace utrain
