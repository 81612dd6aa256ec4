// What a misspelt word may have meant. Distance: optimal string alignment (Levenshtein, and a swap
// of neighbours is one); for words of lengths too far apart the longer length instead.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace utrain {

inline size_t edit_distance(std::string_view a, std::string_view b) {
  constexpr size_t kLongest = 64;  // nobody's slip of the key: it keeps hostile input cheap
  const auto [shorter, longer] = std::minmax({a.size(), b.size()});
  if (longer > kLongest || shorter < longer / 2) return longer;  // not near, whatever the letters
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

// Beyond half of the letters a suggestion is a guess that only misleads.
inline bool is_near(size_t distance, std::string_view a, std::string_view b) {
  return 2 * distance <= std::max(a.size(), b.size());
}

// The nearest of the words, "" when none is near.
template <class Words>
std::string nearest(std::string_view word, const Words& words) {
  std::string_view best;
  size_t smallest = static_cast<size_t>(-1);
  for (const auto& candidate : words) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < smallest) smallest = distance, best = candidate;
  }
  return is_near(smallest, word, best) ? std::string(best) : "";
}

}  // namespace utrain
