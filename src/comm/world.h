// World: the MPI session and what the ranks agree on. MPI starts the processes and says who is who;
// nothing outside src/comm sees its types. Every public call but abort() and the getters is
// collective: all ranks make the same calls in the same order. A decision that may fail goes
// through together() or first_rank(), so that all ranks leave alike. Whatever else a rank throws is
// its own: the others do not know and would wait for ever, so main must answer it with abort().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/rank_group.h"
#include "comm/watchdog.h"
#include "core/error.h"

namespace utrain {

// An Error that every rank throws at the same place with the same code and text: rank 0 prints it,
// and all finalise and exit with code(). Print before World ends: a launcher may kill the others
// when the first rank has left.
class SharedError : public Error {
 public:
  using Error::Error;
};

struct WorldOptions {
  // 0: as the machines are. Else nodes have at most so many ranks: tests make several of one.
  int ranks_per_node = 0;
  int64_t hang_timeout = 0;  // s; see Watchdog
};

class World {
 public:
  // Starts MPI. Throws Error(usage) where a Slurm job's tasks did not find each other; then every
  // task is alone and throws. Only one World in the life of a process.
  World(int* argc, char*** argv, const WorldOptions& options = {});
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this node
  int local_size() const { return local_size_; }
  int node() const { return node_; }  // nodes count from 0 in the order of their first rank
  int n_nodes() const { return n_nodes_; }
  const RankGroup& all_ranks() const { return *all_ranks_; }
  const RankGroup& node_group() const { return *node_group_; }  // the ranks of this node
  const std::string& host() const { return hosts_[static_cast<size_t>(rank_)]; }
  const std::vector<std::string>& hosts() const { return hosts_; }  // [size] host of each rank
  // Threads this rank may run without taking another's: its own cores where ranks are bound to
  // cores of their own, else an equal share of what the node's ranks may use together. At least 1.
  int cores_per_rank() const { return cores_per_rank_; }
  double wtime() const;                              // seconds since some moment in the past
  Watchdog& watchdog() const { return *watchdog_; }  // not collective

  // What a hang is told with: this rank's device, "GPU 0, NAME".
  void name_device(const std::string& device) const;
  // Where it is told: crash/ and heartbeats/ in the run directory. What an earlier run left goes.
  void watch_in(const std::string& run_dir) const;

  // Every rank runs work, which itself makes no collective call. If it throws on any rank, all
  // throw SharedError with code and text of the lowest rank that failed. std::bad_alloc is usage
  // (does not fit in memory), std::system_error io, any other std::exception internal.
  void together(const std::function<void()>& work) const;
  // As together(), for work in which ranks wait for each other by other means than World: on every
  // rank it ends within a bounded time, whatever becomes of the others. The error is that of the
  // rank that failed soonest: later ones are those of ranks that waited for it.
  void meet(const std::function<void()>& work) const;
  // As together(), but only rank 0 runs work.
  void first_rank(const std::function<void()>& work) const;
  // All ranks must hold the same value, else SharedError(disagree) names the first rank that
  // differs from rank 0.
  void agree(std::string_view what, const std::string& value) const;

  std::string broadcast(std::string text) const;                        // rank 0's text
  std::vector<std::string> gather_text(const std::string& text) const;  // [size] on all ranks
  std::vector<double> gather(double value) const;                       // [size] on all ranks
  // The largest of each over all ranks, each of which gives as many. A host waits for hosts alone,
  // for no GPU: cheap enough for every step.
  std::vector<int64_t> max(std::vector<int64_t> values) const;
  void barrier() const;

  [[noreturn]] void abort(int code) const;  // ends all ranks now, also those that wait or compute

  // Before or without MPI: what the launcher tells in the environment; 0 where there is none.
  static int rank_by_launcher();
  static std::string mpi_version();  // one line; also before there is a World

 private:
  struct Session {
    Session(int* argc, char*** argv, Watchdog& watchdog);
    ~Session();
    Watchdog& watchdog;
    bool under_mpirun;
  };

  std::vector<int> find_nodes(int ranks_per_node);
  void join_watch(const std::vector<int>& nodes);
  void throw_first(const std::optional<Error>& error, double seconds) const;

  // First members, so that MPI ends after everything else and is watched to its end, also when the
  // constructor throws.
  std::unique_ptr<Watchdog> watchdog_;
  Session session_;
  std::optional<RankGroup> all_ranks_, node_group_;
  int rank_ = 0, size_ = 1;
  int local_rank_ = 0, local_size_ = 1;
  int node_ = 0, n_nodes_ = 1;
  int cores_per_rank_ = 1;
  std::vector<std::string> hosts_;
};

}  // namespace utrain
