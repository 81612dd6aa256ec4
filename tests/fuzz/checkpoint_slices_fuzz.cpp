// The slices of all ranks as numbers, against a count of how often each element is held.
#include <cstring>

#include "checkpoint/manifest.h"
#include "checkpoint/shard.h"
#include "fuzz.h"

using namespace utrain;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const int64_t n_elem = data[0];
  std::vector<std::vector<Slice>> ranks(1 + data[1] % 4);
  bool in_order = true;
  std::vector<int> held(static_cast<size_t>(n_elem));
  for (size_t at = 2; at + 3 <= size; at += 3) {
    std::vector<Slice>& slices = ranks[data[at] % ranks.size()];
    const auto begin = static_cast<int8_t>(data[at + 1]), n = static_cast<int8_t>(data[at + 2]);
    // The largest numbers stand for those near the ends of int64_t that the manifest lets through.
    const Slice slice = {begin == 127 ? int64_t{1} << 52 : begin, n == 127 ? int64_t{1} << 52 : n};
    const int64_t before = slices.empty() ? 0 : slices.back().begin + slices.back().n_elem;
    in_order = in_order && slice.begin >= before && slice.n_elem >= 0;
    slices.push_back(slice);
    for (int64_t i = slice.begin; in_order && i < slice.begin + slice.n_elem; ++i) {
      if (i >= n_elem) {
        in_order = false;
      } else {
        ++held[static_cast<size_t>(i)];
      }
    }
  }
  const bool once = std::all_of(held.begin(), held.end(), [](int n) { return n == 1; });
  const bool sound = fault_of_slices(ranks, n_elem).empty();
  fuzz::expect(sound == (in_order && once), "accepted where each element is held once");
  if (!sound) return 0;
  for (int64_t i = 0; i < n_elem; ++i) {
    int64_t holders = 0;
    for (const std::vector<Slice>& slices : ranks)
      holders += ShardReader::overlap(slices, {i, 1}) ? 1 : 0;
    fuzz::expect(holders == 1, "one shard has the element");
  }
  return 0;
}
