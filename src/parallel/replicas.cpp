#include "parallel/replicas.h"

#include <algorithm>
#include <map>
#include <sstream>

namespace utrain {

namespace {

// A rank's own words on one kind.
struct Statement {
  std::string slice;      // "0/1"
  std::string sum;        // of what is there now
  bool is_intact = true;  // as it was loaded, where frozen
};

std::vector<Statement> read_statements(const std::string& text) {
  std::istringstream in(text);
  std::vector<Statement> statements(kReplicaNames.size());
  for (Statement& s : statements) in >> s.slice >> s.sum >> s.is_intact;
  ASSERT(!in.fail());
  return statements;
}

// "rank 3 on node7" or "ranks 0 on node6, 3 on node7"
std::string list_of(const std::vector<size_t>& ranks, const std::vector<std::string>& hosts) {
  constexpr size_t kMost = 8;
  std::string text = ranks.size() == 1 ? "rank" : "ranks";
  for (size_t i = 0; i < std::min(ranks.size(), kMost); ++i)
    text += fmt::format("{} {} on {}", i == 0 ? "" : ",", ranks[i], hosts[ranks[i]]);
  if (ranks.size() > kMost) text += fmt::format(" and {} more", ranks.size() - kMost);
  return text;
}

// ranks_by_sum: of ranks that should have the same sum.
std::string difference(const char* name,
                       const std::map<std::string, std::vector<size_t>>& ranks_by_sum,
                       const std::vector<std::string>& hosts) {
  size_t most = 0;
  for (const auto& [sum, ranks] : ranks_by_sum) most = std::max(most, ranks.size());
  std::vector<size_t> few, all;
  for (const auto& [sum, ranks] : ranks_by_sum) {
    all.insert(all.end(), ranks.begin(), ranks.end());
    if (ranks.size() < most) few.insert(few.end(), ranks.begin(), ranks.end());
  }
  const bool is_told = few.size() + most == all.size();
  std::vector<size_t>& named = is_told ? few : all;
  std::sort(named.begin(), named.end());
  return is_told ? fmt::format("the {} of {} are not those of the other {}", name,
                               list_of(named, hosts), most == 1 ? "rank" : "ranks")
                 : fmt::format("the {} of {} differ, and which are right cannot be told", name,
                               list_of(named, hosts));
}

}  // namespace

Replicas::Replicas(Backend& backend, Arena& arena) : backend_(backend) {
  sums_id_ = arena.declare("checksums of replicas", DType::f64, 1, std::ssize(kReplicaNames),
                           MemoryClass::workspace);
}

void Replicas::bind(const Arena& arena, ReplicaSet set) {
  sums_ = arena[sums_id_];
  set_ = std::move(set);
}

void Replicas::loaded() {
  loaded_ = sums(begin());
}

int64_t Replicas::begin() {
  backend_.zero(sums_);
  for (size_t kind = 0; kind < set_.size(); ++kind) {
    for (const Tensor& x : set_[kind].tensors)
      backend_.checksum(sums_.columns(static_cast<int64_t>(kind), 1), x);
  }
  return backend_.download_begin(sums_.data, sizeof(Sums));
}

Replicas::Sums Replicas::sums(int64_t ticket) const {
  Sums sums;
  backend_.download_end(sums.data(), ticket);
  return sums;
}

std::string Replicas::end(int64_t ticket) const {
  const Sums now = sums(ticket);
  std::string text;
  for (size_t kind = 0; kind < set_.size(); ++kind) {
    const Replica& replica = set_[kind];
    const bool is_intact = !replica.is_frozen || now[kind] == loaded_[kind];
    text += fmt::format("{}/{} {:.0f} {:d}\n", replica.slice, replica.slices, now[kind], is_intact);
  }
  return text;
}

std::string differences(const std::vector<std::string>& texts,
                        const std::vector<std::string>& hosts) {
  std::vector<std::vector<Statement>> statements;  // [ranks]
  for (const std::string& text : texts) statements.push_back(read_statements(text));
  std::string found;
  const auto add = [&](const std::string& text) { found += (found.empty() ? "" : "; ") + text; };
  for (size_t kind = 0; kind < kReplicaNames.size(); ++kind) {
    std::vector<size_t> changed;
    std::map<std::string, std::map<std::string, std::vector<size_t>>> by_slice;
    for (size_t rank = 0; rank < statements.size(); ++rank) {
      const Statement& s = statements[rank][kind];
      if (!s.is_intact)
        changed.push_back(rank);
      else
        by_slice[s.slice][s.sum].push_back(rank);
    }
    if (!changed.empty())
      add(fmt::format("the {} of {} are not what was loaded", kReplicaNames[kind],
                      list_of(changed, hosts)));
    for (const auto& [slice, by_sum] : by_slice)
      if (by_sum.size() > 1) add(difference(kReplicaNames[kind], by_sum, hosts));
  }
  return found;
}

std::string find_differences(const World& world, int64_t step, const std::string& own) {
  const std::string found = differences(world.gather_text(own), world.hosts());
  if (found.empty()) return "";
  return fmt::format(
      "step {}: {}; have the memory of these GPUs and their links checked (nvidia-smi -q -d "
      "ECC,ROW_REMAPPER), and go on from the last checkpoint without them",
      step, found);
}

}  // namespace utrain
