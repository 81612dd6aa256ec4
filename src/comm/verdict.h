// Whether ranks hang, and which of them the others wait for: a function of what was seen of them.
//   The run hangs where none of the ranks that are behind, those with the lowest number of calls,
// has shown progress within its limit: all others wait for them, or soon will. A rank that is busy
// and says so keeps the run alive, however long the others wait.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/stamp.h"

namespace utrain {

struct RankView {
  int rank = 0;
  Stamp stamp;
  double limit = 0.0;     // s without progress
  double silent = 0.0;    // s since it showed progress
  bool is_still = false;  // not even its watchdog thread moves: stopped, or its node is gone
};

struct Verdict {
  size_t suspect = 0;    // which of the views
  bool differs = false;  // it made another call than most
};

// Suspects: first who stands still, then those behind; of these who has not entered the call, then
// who made another one than most, then who has been silent longest, then the lowest rank.
std::optional<Verdict> judge(const std::vector<RankView>& views);

// One line, without prefix. places [ranks]: "HOST (GPU 0, NAME)"; crash_dir "" = no files.
std::string verdict_text(const Verdict& verdict, const std::vector<RankView>& views,
                         const std::vector<std::string>& places, const std::string& crash_dir);

}  // namespace utrain
