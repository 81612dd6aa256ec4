// The MPI session behind World. Ranks of a node are those that can share memory
// (MPI_Comm_split_type); agreement is always "the lowest rank that has something to say broadcasts
// it", so every rank reads the same bytes.
#include "comm/world.h"

#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <new>
#include <numeric>
#include <system_error>

#include "comm/communicator.h"

namespace utrain {
namespace {

// One bit for each processor; as many as any Linux kernel is built for.
using CpuMask = std::array<uint64_t, 8192 / 64>;

CpuMask own_cpus() {
  CpuMask mask{};
  if (sched_getaffinity(0, sizeof mask, reinterpret_cast<cpu_set_t*>(mask.data())) != 0) mask = {1};
  return mask;
}

int count(const CpuMask& mask) {
  return std::transform_reduce(mask.begin(), mask.end(), 0, std::plus{},
                               [](uint64_t word) { return std::popcount(word); });
}

// Ranks bound to processors of their own keep them; where masks overlap, all share the union.
int share_cores(const RankGroup& local) {
  const Watchdog::InCall call(local.watchdog(), CallKind::agree);
  const CpuMask own = own_cpus();
  CpuMask all{};
  const int n_own = count(own);
  int sum = 0;
  std::array<MPI_Request, 2> requests{MPI_REQUEST_NULL, MPI_REQUEST_NULL};
  MPI_CHECK(MPI_Iallreduce(own.data(), all.data(), static_cast<int>(own.size()), MPI_UINT64_T,
                           MPI_BOR, comm_of(local), &requests[0]));
  MPI_CHECK(MPI_Iallreduce(&n_own, &sum, 1, MPI_INT, MPI_SUM, comm_of(local), &requests[1]));
  wait_for(local.watchdog(), requests);
  const bool disjoint = sum == count(all);
  return std::max(1, disjoint ? n_own : count(all) / local.size());
}

// A container may forbid reading the memory of another process. Open MPI would try for each
// message, print a line, and copy the other way: here it copies that way from the start.
void probe_single_copy() {
  char from = 0, to = 0;
  const iovec local{&to, 1}, remote{&from, 1};
  if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1) return;
  setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

// Memory that ends with its last process: Open MPI's files in /dev/shm stay where the launcher is
// killed. Where there is none of this kind, it takes files.
void prefer_memory_without_files() {
  setenv("OMPI_MCA_shmem_sysv_priority", "60", 0);  // of files: 50
}

// Tasks that Slurm started without PMIx are each a world of one and would all do the same work.
// Under mpirun a world of one is meant, also inside a Slurm job.
void check_launch(int size, bool under_mpirun) {
  const char* tasks = std::getenv("SLURM_NTASKS");
  const bool slurm_task = tasks != nullptr && std::getenv("SLURM_PROCID") != nullptr;
  if (size > 1 || under_mpirun || !slurm_task || std::atoi(tasks) <= 1) return;
  fail(ExitCode::usage, "MPI",
       fmt::format("started without PMIx: Slurm runs {} tasks, but each one sees itself alone",
                   tasks),
       "start with `srun --mpi=pmix ./utrain ...` or `mpirun ./utrain ...`; for a single process "
       "in a larger job, `mpirun -np 1 ./utrain ...`");
}

std::optional<Error> attempt(const std::function<void()>& work, const std::string& who) {
  try {
    work();
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(
        ExitCode::usage,
        fmt::format("memory: does not fit in memory on {}; lower train.micro_batch_size or "
                    "data.seq_len, or use fewer ranks a node",
                    who));
  } catch (const std::system_error& error) {
    return Error(ExitCode::io,
                 fmt::format("{}: {}; check space, quota and permissions of where the output goes",
                             who, error.what()));
  } catch (const std::exception& error) {
    return Error(ExitCode::internal,
                 fmt::format("{}: unexpected failure: {}; this is a fault of utrain: please report "
                             "it with the input that led here",
                             who, error.what()));
  }
  return std::nullopt;
}

std::unique_ptr<Watchdog> make_watchdog(int64_t timeout) {
  const int rank = World::rank_by_launcher();
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  return std::make_unique<Watchdog>(timeout, rank, fmt::format("rank {} on {}", rank, host));
}

// About 60 characters of text around position at, on one line.
std::string excerpt(const std::string& text, size_t at) {
  const size_t begin = at > 30 ? at - 30 : 0;
  std::string part = text.substr(begin, 60);
  std::replace_if(
      part.begin(), part.end(), [](unsigned char c) { return c < ' '; }, ' ');
  return fmt::format("\"{}{}{}\"", begin > 0 ? "..." : "", part,
                     begin + part.size() < text.size() ? "..." : "");
}

}  // namespace

World::Session::Session(int* argc, char*** argv, Watchdog& of_rank)
    : watchdog(of_rank),
      under_mpirun(std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) {  // before MPI_Init may set it
  probe_single_copy();
  prefer_memory_without_files();
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);  // a failure here ends the process
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
}

World::Session::~Session() {
  {
    // Who misses the others is ended here: mpirun 4.1 may not survive that in MPI_Finalize.
    const Watchdog::InCall call(watchdog, CallKind::leave);
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    for (int done = 0; MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done == 0;)
      watchdog.waits();
  }
  const Watchdog::InCall call(watchdog, CallKind::finalize);
  MPI_Finalize();
}

World::World(int* argc, char*** argv, const WorldOptions& options)
    : watchdog_(make_watchdog(options.hang_timeout)), session_(argc, argv, *watchdog_) {
  all_ranks_.emplace(std::make_shared<RankGroup::Communicator>(MPI_COMM_WORLD, *watchdog_));
  rank_ = all_ranks_->rank();
  size_ = all_ranks_->size();
  check_launch(size_, session_.under_mpirun);

  char host[MPI_MAX_PROCESSOR_NAME] = "";
  int length = 0;
  MPI_CHECK(MPI_Get_processor_name(host, &length));
  hosts_ = gather_text(std::string(host, static_cast<size_t>(length)));
  join_watch(find_nodes(options.ranks_per_node));
}

// Of each rank the first rank of its node.
std::vector<int> World::find_nodes(int ranks_per_node) {
  const auto adopt = [&](MPI_Comm part) {
    node_group_.emplace(std::make_shared<RankGroup::Communicator>(part, *watchdog_));
  };
  MPI_Comm local = MPI_COMM_NULL, part = MPI_COMM_NULL;
  {
    // MPI itself waits, but not for who is late: all have just been in gather_text().
    const Watchdog::InCall call(*watchdog_, CallKind::split);
    MPI_CHECK(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local));
  }
  adopt(local);
  cores_per_rank_ = share_cores(*node_group_);
  if (ranks_per_node > 0) {
    {
      const Watchdog::InCall call(*watchdog_, CallKind::split);
      MPI_CHECK(MPI_Comm_split(local, node_group_->rank() / ranks_per_node, rank_, &part));
    }
    adopt(part);
  }
  local_rank_ = node_group_->rank();
  local_size_ = node_group_->size();

  // A node is known by its first rank.
  const Watchdog::InCall call(*watchdog_, CallKind::all_gather);
  int first = rank_;
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Ibcast(&first, 1, MPI_INT, 0, comm_of(*node_group_), &request));
  wait_for(*watchdog_, request);
  std::vector<int> first_of(static_cast<size_t>(size_));
  MPI_CHECK(
      MPI_Iallgather(&first, 1, MPI_INT, first_of.data(), 1, MPI_INT, MPI_COMM_WORLD, &request));
  wait_for(*watchdog_, request);
  std::vector<int> nodes = first_of;
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  n_nodes_ = static_cast<int>(nodes.size());
  node_ = static_cast<int>(std::lower_bound(nodes.begin(), nodes.end(), first) - nodes.begin());
  return first_of;
}

// The first rank of a node makes the shared memory, the others open it. An error is one of all.
void World::join_watch(const std::vector<int>& first_of) {
  const int first = first_of[static_cast<size_t>(rank_)];
  Watchdog::Place place{rank_, local_rank_, node_, n_nodes_, {}};
  std::vector<int> own;
  for (int r = 0; r < size_; ++r)
    (first_of[static_cast<size_t>(r)] == first ? own : place.others).push_back(r);
  std::shared_ptr<Board> board;
  together([&] {
    if (rank_ != first) return;
    board = std::make_shared<Board>("", local_size_);
    for (int i = 0; i < local_size_; ++i) board->slot(i).rank = own[static_cast<size_t>(i)];
  });
  const std::string name = node_group_->broadcast(rank_ == first ? board->name() : "");
  together([&] {
    if (rank_ != first) board = std::make_shared<Board>(name, local_size_);
  });
  if (rank_ == first) board->unlink();
  watchdog_->set_places(hosts_);
  watchdog_->join(std::move(board), place);
}

void World::name_device(const std::string& device) const {
  std::vector<std::string> places = gather_text(fmt::format("{} ({})", host(), device));
  watchdog_->set_places(std::move(places));
}

void World::watch_in(const std::string& run_dir) const {
  first_rank([&] {
    namespace fs = std::filesystem;
    for (const char* name : {"crash", "heartbeats"}) fs::remove_all(fs::path(run_dir) / name);
    if (n_nodes_ > 1) fs::create_directory(fs::path(run_dir) / "heartbeats");
  });
  watchdog_->set_directory(run_dir);
}

int World::rank_by_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"})
    if (const char* rank = std::getenv(name)) return std::atoi(rank);
  return 0;
}

double World::wtime() const {
  return MPI_Wtime();
}

void World::together(const std::function<void()>& work) const {
  throw_first(attempt(work, fmt::format("rank {} on {}", rank_, host())), 0.0);
}

void World::meet(const std::function<void()>& work) const {
  barrier();
  const double begin = wtime();
  const std::optional<Error> error = attempt(work, fmt::format("rank {} on {}", rank_, host()));
  throw_first(error, wtime() - begin);
}

void World::first_rank(const std::function<void()>& work) const {
  together([&] {
    if (rank_ == 0) work();
  });
}

// The error of the rank with the fewest seconds, the lowest such rank.
void World::throw_first(const std::optional<Error>& error, double seconds) const {
  const Watchdog::InCall call(*watchdog_, CallKind::agree);
  constexpr double kNever = std::numeric_limits<double>::max();
  struct {
    double seconds;
    int rank;
  } const own{error ? seconds : kNever, rank_};
  auto all = own;
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Iallreduce(&own, &all, 1, MPI_DOUBLE_INT, MPI_MINLOC, MPI_COMM_WORLD, &request));
  wait_for(*watchdog_, request);
  if (all.seconds == kNever) return;
  const int first = all.rank;
  int code = error ? static_cast<int>(error->code()) : 0;
  MPI_CHECK(MPI_Ibcast(&code, 1, MPI_INT, first, MPI_COMM_WORLD, &request));
  wait_for(*watchdog_, request);
  throw SharedError(static_cast<ExitCode>(code),
                    all_ranks_->broadcast(error ? error->what() : "", first));
}

void World::agree(std::string_view what, const std::string& value) const {
  const std::string wanted = broadcast(value);
  together([&] {
    if (value == wanted) return;
    const size_t n = std::min(value.size(), wanted.size());
    const auto at = static_cast<size_t>(
        std::mismatch(value.begin(), value.begin() + static_cast<ptrdiff_t>(n), wanted.begin())
            .first -
        value.begin());
    fail(ExitCode::disagree, what,
         fmt::format("rank {} on {} has {}, rank 0 on {} has {}", rank_, host(), excerpt(value, at),
                     hosts_[0], excerpt(wanted, at)),
         "start the same binary with the same input and the same files on every node");
  });
}

std::string World::broadcast(std::string text) const {
  return all_ranks_->broadcast(std::move(text));
}

std::vector<std::string> World::gather_text(const std::string& text) const {
  const Watchdog::InCall call(*watchdog_, CallKind::all_gather);
  const auto ranks = static_cast<size_t>(size_);
  const int64_t own = std::ssize(text);
  std::vector<int64_t> sizes(ranks);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(
      MPI_Iallgather(&own, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, MPI_COMM_WORLD, &request));
  wait_for(*watchdog_, request);
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  ASSERT(total <= kMaxMessageBytes);

  const std::vector<int> counts(sizes.begin(), sizes.end());
  std::vector<int> begins(ranks);
  std::exclusive_scan(counts.begin(), counts.end(), begins.begin(), 0);
  std::string all(static_cast<size_t>(total), '\0');
  MPI_CHECK(MPI_Iallgatherv(text.data(), static_cast<int>(own), MPI_BYTE, all.data(), counts.data(),
                            begins.data(), MPI_BYTE, MPI_COMM_WORLD, &request));
  wait_for(*watchdog_, request);
  std::vector<std::string> texts;
  for (size_t r = 0; r < ranks; ++r) {
    texts.push_back(all.substr(static_cast<size_t>(begins[r]), static_cast<size_t>(counts[r])));
  }
  return texts;
}

std::vector<double> World::gather(double value) const {
  const Watchdog::InCall call(*watchdog_, CallKind::all_gather);
  std::vector<double> values(static_cast<size_t>(size_));
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Iallgather(&value, 1, MPI_DOUBLE, values.data(), 1, MPI_DOUBLE, MPI_COMM_WORLD,
                           &request));
  wait_for(*watchdog_, request);
  return values;
}

std::vector<int64_t> World::max(std::vector<int64_t> values) const {
  if (size_ == 1) return values;
  const Watchdog::InCall call(*watchdog_, CallKind::agree);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()),
                           MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD, &request));
  wait_for(*watchdog_, request);
  return values;
}

void World::barrier() const {
  const Watchdog::InCall call(*watchdog_, CallKind::barrier);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Ibarrier(MPI_COMM_WORLD, &request));
  wait_for(*watchdog_, request);
}

void World::abort(int code) const {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

std::string World::mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_CHECK(MPI_Get_library_version(text, &length));
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace utrain
