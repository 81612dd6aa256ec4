// A small program that saves as utrain promises to: the fault library is tried on it.
// usage: fault_stand_in RUN_DIR SAVES [no-fsync] [no-dir-fsync]
// Each save of rank 0: a temporary directory with two files, synced, renamed to save-N; in between
// all ranks meet twice. Exit codes: 74 = a write failed, 70 = an MPI call failed.
#include <fcntl.h>
#define OMPI_SKIP_MPICXX 1  // the C interface alone
#include <mpi.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>

namespace {

std::set<std::string> left_out;

void stop_unless(bool good, int code) {
  if (!good) MPI_Abort(MPI_COMM_WORLD, code);
}

void sync(const std::string& path, const char* unless) {
  if (left_out.contains(unless)) return;
  const int fd = open(path.c_str(), O_RDONLY);
  stop_unless(fd >= 0 && fsync(fd) == 0, 74);
  close(fd);
}

void write_file(const std::string& path, const std::string& text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  stop_unless(fd >= 0, 74);
  const auto n = static_cast<ssize_t>(text.size());
  stop_unless(write(fd, text.data(), text.size()) == n, 74);
  close(fd);
  sync(path, "no-fsync");
}

void save(const std::string& dir, int i) {
  const std::string temp = dir + "/tmp", done = dir + "/save-" + std::to_string(i);
  stop_unless(mkdir(temp.c_str(), 0700) == 0, 74);
  write_file(temp + "/a", std::string(5000, 'a'));
  write_file(temp + "/b", std::string(300, 'b'));
  sync(temp, "no-dir-fsync");
  stop_unless(rename(temp.c_str(), done.c_str()) == 0, 74);
  sync(dir, "no-dir-fsync");
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0, rank = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const std::string dir = argv[1];
  for (int i = 3; i < argc; ++i) left_out.insert(argv[i]);
  if (rank == 0) mkdir(dir.c_str(), 0700);
  for (int i = 1; i <= std::atoi(argv[2]); ++i) {
    int mine = i, sum = 0;
    stop_unless(
        MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD) == MPI_SUCCESS && sum > 0,
        70);
    if (rank == 0) save(dir, i);
    stop_unless(MPI_Barrier(MPI_COMM_WORLD) == MPI_SUCCESS, 70);
  }
  MPI_Finalize();
}
