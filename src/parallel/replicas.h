// What several ranks must hold alike, and what never changes, by checksum: a GPU whose memory fails
// silently, or a sum that arrived wrong, would else train a model of its own and nobody knew. The
// strategy says what there is to compare: Replica.
//   begin() launches the checksums of this rank and waits for nothing; end() has them as one text;
//   find_differences() holds the texts of all ranks against each other.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "backend.h"
#include "comm/world.h"
#include "core/arena.h"

namespace utrain {

enum class ReplicaKind { base, values, parameters, moments };
inline constexpr std::array<const char*, 4> kReplicaNames = {
    "frozen base weights", "working weights", "parameters", "Adam moments"};

// Of one kind, what this rank has on its device; nothing where it shares it with no rank.
struct Replica {
  std::vector<Tensor> tensors;
  int slice = 0, slices = 1;  // ranks where both are equal hold the same
  bool is_frozen = false;     // each rank's own checksum stays as well
};
using ReplicaSet = std::array<Replica, kReplicaNames.size()>;  // indexed by ReplicaKind

class Replicas {
 public:
  Replicas(Backend& backend, Arena& arena);
  void bind(const Arena& arena, ReplicaSet set);  // after what it is made of
  void loaded();                                  // takes the checksums of what is frozen

  int64_t begin();
  std::string end(int64_t ticket) const;  // of begin(), as find_differences() reads it

 private:
  using Sums = std::array<double, kReplicaNames.size()>;
  Sums sums(int64_t ticket) const;

  Backend& backend_;
  Arena::Id sums_id_;
  Tensor sums_;  // [1, kinds] float64
  ReplicaSet set_;
  Sums loaded_ = {};  // of what is frozen
};

// What is wrong, of all ranks' texts and their hosts; empty where nothing is. Where copies differ,
// most of them are right; where as many say this as that, nobody can tell, and all are named.
std::string differences(const std::vector<std::string>& texts,
                        const std::vector<std::string>& hosts);
// Collective. own: Replicas::end, after this step. What to tell the user, one line; empty where all
// is alike.
std::string find_differences(const World& world, int64_t step, const std::string& own);

}  // namespace utrain
