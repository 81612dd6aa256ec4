// Ranks whose memory or links fail. A test that includes this is started in the place of ./utrain,
// under mpirun, as what kFault says:
//   memory KIND RANK STEP   a Trainer's steps; after STEP of them one bit of what RANK holds of
//                           this ReplicaKind is flipped on its device; then all compare
//   links RANK              all that ./utrain does, but of every message that RANK waits for, from
//                           the 12th wait on, the first float32 arrives with another fraction
#pragma once

#include <cstdlib>
#include <sstream>

#include "app/machine.h"
#include "comm/mpi_check.h"
#include "in_place_of_utrain.h"
#include "train/choose_recompute.h"
#include "train/trainer.h"

namespace utrain {

inline constexpr const char* kFault = "UTRAIN_FAILING_RANKS_TEST_FAULT";

struct FailingLinks {
  bool on = false;
  int n_waits = 0;
  std::vector<std::pair<void*, int>> received;  // bytes of messages that are waited for
};
inline FailingLinks failing_links;

// The highest bit of the first float32's fraction: twice the number at most.
inline void flip_first(Backend& backend, const Tensor& x) {
  uint32_t word = 0;
  backend.download(&word, x.data, 4);
  word ^= uint32_t{1} << 22;
  backend.upload(x.data, &word, 4);
}

inline void compare_replicas(const World& world, int64_t step, const std::string& own) {
  const std::string line = find_differences(world, step, own);
  if (!line.empty()) throw SharedError(ExitCode::disagree, line);
}

inline void train_with_failing_memory(const CommandLine& command_line, const World& world,
                                      std::istream& fault) {
  int kind = 0, rank = 0, step = 0;
  fault >> kind >> rank >> step;
  ASSERT(!fault.fail());
  const Config config = read_config(command_line.input, command_line.overrides);
  const Job job = read_job(config, world.size());
  const Machine machine = open_machine(config, world);
  Trainer trainer(job, *machine.backend, machine.groups(),
                  choose_recompute(job, *machine.backend, machine.groups(), machine.budget()));
  trainer.load();
  trainer.loaded();
  compare_replicas(world, 0, trainer.replicas());
  for (int64_t i = 1; i <= job.total_steps; ++i) {
    trainer.train_step(i);
    if (i == step && world.rank() == rank) {
      const ReplicaSet set = trainer.model_state().replicas();
      flip_first(*machine.backend, set.at(static_cast<size_t>(kind)).tensors.at(0));
    }
  }
  trainer.finish_steps();
  compare_replicas(world, job.total_steps, trainer.replicas());
}

inline int run_failing_rank(int argc, char** argv, const std::string& of) {
  const char* ranks_per_node = std::getenv(kRanksPerNode);
  const auto work = [&](const CommandLine& command_line, const World& world) {
    std::istringstream fault(of);
    std::string what;
    fault >> what;
    if (what == "memory") {
      train_with_failing_memory(command_line, world, fault);
      return 0;
    }
    int rank = -1;
    fault >> rank;
    failing_links.on = what == "links" && world.rank() == rank;
    return run_utrain(command_line, world);
  };
  return in_place_of_utrain(argc, argv, ranks_per_node ? std::atoi(ranks_per_node) : 0, work);
}

inline Outcome launch_failing(int ranks, const std::string& fault,
                              const std::vector<std::string>& arguments, int ranks_per_node = 0) {
  ::setenv(kFault, fault.c_str(), 1);
  ::setenv(kRanksPerNode, std::to_string(ranks_per_node).c_str(), 1);
  return launch(ranks, arguments);
}

inline std::string memory_fault(ReplicaKind kind, int rank, int step) {
  return fmt::format("memory {} {} {}", static_cast<int>(kind), rank, step);
}

inline int main_of_failing_ranks(int argc, char** argv) {
  if (const char* fault = std::getenv(kFault)) return run_failing_rank(argc, argv, fault);
  return main_of_tests(argc, argv);
}

}  // namespace utrain

// In the place of MPI's own, which are PMPI_*. Not inline: nothing of this file calls them.
extern "C" int MPI_Irecv(void* to, int n, MPI_Datatype type, int from, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  if (utrain::failing_links.on) utrain::failing_links.received.push_back({to, n});
  return PMPI_Irecv(to, n, type, from, tag, comm, request);
}
extern "C" int MPI_Testall(int n, MPI_Request* requests, int* done, MPI_Status* statuses) {
  const bool is_sum = n > 1;  // not a scalar call's one request
  const int result = PMPI_Testall(n, requests, done, statuses);
  utrain::FailingLinks& links = utrain::failing_links;
  if (*done == 0 || !is_sum) return result;
  if (links.on && ++links.n_waits >= 12) {
    for (const auto& [to, bytes] : links.received)
      if (bytes > 64) static_cast<unsigned char*>(to)[2] ^= 1;
  }
  links.received.clear();
  return result;
}
