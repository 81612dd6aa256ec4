#include "comm/verdict.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <tuple>

namespace utrain {
namespace {

constexpr size_t kMostListed = 8;

bool same_call(const Stamp& a, const Stamp& b) {
  return a.kind == b.kind && a.n_elem == b.n_elem;
}

// The call that most of them made.
Stamp usual_call(const std::vector<RankView>& views, const std::vector<size_t>& behind) {
  std::map<std::tuple<CallKind, int64_t>, int> votes;
  size_t best = behind.front();
  int most = 0;
  for (const size_t i : behind) {
    const Stamp& s = views[i].stamp;
    if (const int n = ++votes[{s.kind, s.n_elem}]; n > most) most = n, best = i;
  }
  return views[best].stamp;
}

// The few who wait in a later call, while most wait in one that nobody leaves before all have come:
// they made another call in its place.
std::vector<size_t> ahead_without_others(const std::vector<RankView>& views,
                                         const std::vector<size_t>& behind) {
  const Stamp usual = usual_call(views, behind);
  std::vector<size_t> ahead;
  if (usual.kind == CallKind::broadcast) return ahead;
  for (size_t i = 0; i < views.size(); ++i) {
    const RankView& v = views[i];
    if (v.stamp.number > usual.number && v.stamp.inside && v.silent >= v.limit) ahead.push_back(i);
  }
  if (ahead.size() >= behind.size()) ahead.clear();
  return ahead;
}

}  // namespace

std::optional<Verdict> judge(const std::vector<RankView>& views) {
  if (views.empty()) return std::nullopt;
  const auto by_number = [](const RankView& a, const RankView& b) {
    return a.stamp.number < b.stamp.number;
  };
  const int64_t lowest = std::min_element(views.begin(), views.end(), by_number)->stamp.number;
  std::vector<size_t> behind, suspects, stuck;
  bool all_behind = true, one = false;
  for (size_t i = 0; i < views.size(); ++i) {
    const RankView& v = views[i];
    const bool is_behind = v.stamp.number == lowest, too_long = v.silent >= v.limit;
    if (is_behind) behind.push_back(i);
    if (v.is_still) suspects.push_back(i);
    if (too_long && (v.is_stuck || (is_behind && !v.stamp.inside))) stuck.push_back(i);
    all_behind &= !is_behind || too_long;
    one |= (is_behind && !v.stamp.inside && too_long) || (v.is_still && v.still >= v.limit);
  }
  if (!all_behind && !one) return std::nullopt;
  if (suspects.empty()) suspects = stuck;
  if (suspects.empty()) {
    const std::vector<size_t> ahead = ahead_without_others(views, behind);
    if (!ahead.empty()) return Verdict{ahead.front(), true};
    suspects = behind;
  }

  const Stamp usual = usual_call(views, behind);
  const auto differs = [&](size_t i) {
    const Stamp& s = views[i].stamp;
    return s.number == lowest && s.inside && usual.inside && !same_call(s, usual);
  };
  const auto order = [&](size_t i) {
    const RankView& v = views[i];
    return std::tuple(v.stamp.number, v.waits(), v.stamp.inside, !differs(i), -v.silent, v.rank);
  };
  const size_t suspect = *std::min_element(suspects.begin(), suspects.end(),
                                           [&](size_t a, size_t b) { return order(a) < order(b); });
  return Verdict{suspect, differs(suspect)};
}

std::string verdict_text(const Verdict& verdict, const std::vector<RankView>& views,
                         const std::vector<std::string>& places, const std::string& crash_dir) {
  const RankView& suspect = views[verdict.suspect];
  const auto of = static_cast<size_t>(suspect.rank);
  std::string text = fmt::format("rank {} on {}: {}no progress for {:.0f} s in {}", suspect.rank,
                                 of < places.size() ? places[of] : "an unknown host",
                                 suspect.is_still   ? "the process stands still, "
                                 : suspect.is_stuck ? "the main thread is stuck, "
                                                    : "",
                                 suspect.silent, place_text(suspect.stamp));
  std::vector<int> waiting;
  const RankView* example = nullptr;
  for (const RankView& v : views) {
    if (v.rank == suspect.rank || !v.waits()) continue;
    if (example == nullptr) example = &v;
    if (same_call(v.stamp, example->stamp) && v.stamp.number == example->stamp.number)
      waiting.push_back(v.rank);
  }
  std::sort(waiting.begin(), waiting.end());
  if (example != nullptr) {
    const std::string who =
        waiting.size() > kMostListed ? fmt::format("{} ranks wait", waiting.size())
        : waiting.size() == 1        ? fmt::format("rank {} waits", waiting[0])
                                     : fmt::format("ranks {} wait", fmt::join(waiting, ", "));
    text += fmt::format(", {} in {}", who, call_text(example->stamp));
  }
  text += verdict.differs    ? "; the ranks made different calls: please report this"
          : suspect.is_still ? "; look there for a stopped or swapping process, a debugger, or a "
                               "lost node"
                             : "; look there at the GPU (nvidia-smi), the file system and dmesg";
  text += ", or raise run.hang_timeout if it was only slow";
  if (!crash_dir.empty()) text += fmt::format(" (last calls of the ranks: {})", crash_dir);
  return text;
}

}  // namespace utrain
