// A test whose launches start itself where others start ./utrain: a rank then does what src/main.cpp
// does, but for what the test changes.
#pragma once

#include <functional>

#include "app/commands.h"
#include "launch.h"

namespace utrain {

// Set for launches: nodes of so many ranks that this machine stands for; 0 = as it is.
inline constexpr const char* kRanksPerNode = "UTRAIN_TEST_RANKS_PER_NODE";

using RankWork = std::function<int(const CommandLine&, const World&)>;

inline int run_utrain(const CommandLine& command_line, const World& world) {
  return static_cast<int>(run_command(command_line, world));
}

// One rank. ranks_per_node: of kRanksPerNode.
inline int in_place_of_utrain(int argc, char** argv, int ranks_per_node, const RankWork& work) {
  const CommandLine command_line = parse_command_line(argc, argv);
  const World world(&argc, &argv, {.ranks_per_node = ranks_per_node});
  try {
    return work(command_line, world);
  } catch (const SharedError& error) {
    if (world.rank() == 0) fmt::print(stderr, "utrain: error: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "utrain: error: {}\n", error.what());
    world.abort(70);
  }
}

// The tests, whose launches start this program.
inline int main_of_tests(int argc, char** argv) {
  ::setenv("UTRAIN_BINARY", std::filesystem::read_symlink("/proc/self/exe").c_str(), 1);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

// The same; where kRanksPerNode is set, a rank.
inline int main_of_tests_in_nodes(int argc, char** argv) {
  const char* ranks_per_node = std::getenv(kRanksPerNode);
  if (ranks_per_node == nullptr) return main_of_tests(argc, argv);
  return in_place_of_utrain(argc, argv, std::atoi(ranks_per_node), run_utrain);
}

}  // namespace utrain
