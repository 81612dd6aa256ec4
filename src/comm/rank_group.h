// Ranks that talk among themselves: all of a World, or those of one node. World makes them and
// outlives them; copies are the same group. A rank's number in its group keeps the order of World.
#pragma once

#include <memory>
#include <string>

namespace utrain {

class Watchdog;

class RankGroup {
 public:
  struct Communicator;  // MPI's: src/comm/communicator.h
  explicit RankGroup(std::shared_ptr<const Communicator> communicator);

  int rank() const { return rank_; }  // in the group
  int size() const { return size_; }
  const Communicator& communicator() const { return *communicator_; }
  Watchdog& watchdog() const;  // of this rank: World's

  // Collective in the group.
  std::string broadcast(std::string text, int root = 0) const;  // root's text

 private:
  std::shared_ptr<const Communicator> communicator_;
  int rank_ = 0, size_ = 1;
};

}  // namespace utrain
