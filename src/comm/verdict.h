// Whether ranks hang, and which of them the others wait for: a function of what was seen of them.
//   The run hangs where nothing of those that are behind, with the lowest number of calls, has shown
// progress within its limit: all others wait for them, or soon will. Also where one of them outside
// of any call has not, or a rank whose whole process stands still for so long. But a rank that is
// busy and says so may be waited for as long as it takes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/stamp.h"

namespace utrain {

struct RankView {
  int rank = 0;
  Stamp stamp;
  double limit = 0.0;   // s without progress
  double silent = 0.0;  // s since it showed progress
  double still = 0.0;   // s since its watchdog thread did
  // For longer than any busy machine explains:
  bool is_still = false;  // it is stopped, or its node is gone
  bool is_stuck = false;  // it lives, is inside of a call, and does not look for what others send

  bool waits() const { return stamp.inside && !is_stuck; }
};

struct Verdict {
  size_t suspect = 0;    // which of the views
  bool differs = false;  // it made another call than most
};

// Suspects: first who stands still, then who does not wait for others and shows no progress all the
// same: stuck in a call, or behind and outside of any; then those behind. Of several, who is furthest
// behind, then who made another call than most, then who has been silent longest, then the lowest
// rank. Where all wait, rather the few who are ahead of a call that nobody can have left.
std::optional<Verdict> judge(const std::vector<RankView>& views);

// One line, without prefix. places [ranks]: "HOST (GPU 0, NAME)"; crash_dir "" = no files.
std::string verdict_text(const Verdict& verdict, const std::vector<RankView>& views,
                         const std::vector<std::string>& places, const std::string& crash_dir);

}  // namespace utrain
