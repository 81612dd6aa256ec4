// Writes that fail: each is Error(io) at once, with the path and the system's reason, and leaves the
// older checkpoint and HDF5 itself in order. The system calls of this process are taken in between,
// to fail when a case asks for it, and to see that everything is synced before it gets its name.
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>

#include "checkpoint_cases.h"

namespace {

// What the calls below do, and what they saw.
struct Calls {
  std::mutex mutex;
  int writes = 0, syncs = 0, renames = 0;                 // so far
  int fail_write = -1, fail_sync = -1, fail_rename = -1;  // the one that fails, from 0
  bool fail_later = false;                                // and all after it
  int error = 0;
  std::vector<std::string> log;  // "write PATH", "sync PATH", "rename FROM TO"

  bool fails(int nth, int chosen) const {
    return chosen >= 0 && (nth == chosen || (fail_later && nth > chosen));
  }
};

Calls& calls() {
  static Calls all;
  return all;
}

std::string path_of(int fd) {
  char path[4096];
  const ssize_t n = readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), path, sizeof path);
  return n < 0 ? "?" : std::string(path, static_cast<size_t>(n));
}

template <class Call>
Call next(const char* name) {
  return reinterpret_cast<Call>(dlsym(RTLD_NEXT, name));
}

bool in_checkpoints(const std::string& path) {
  return path.find("/checkpoints") != std::string::npos;
}

bool stop_write(int fd) {
  const std::string path = path_of(fd);
  if (!in_checkpoints(path)) return false;
  const std::lock_guard lock(calls().mutex);
  calls().log.push_back("write " + path);
  if (!calls().fails(calls().writes++, calls().fail_write)) return false;
  errno = calls().error;
  return true;
}

bool stop_rename(const char* from, const char* to) {
  if (!in_checkpoints(from)) return false;
  const std::lock_guard lock(calls().mutex);
  if (calls().fails(calls().renames++, calls().fail_rename)) {
    errno = calls().error;
    return true;
  }
  calls().log.push_back(fmt::format("rename {} {}", from, to));
  return false;
}

}  // namespace

extern "C" {
ssize_t pwrite(int fd, const void* data, size_t n, off_t at) {
  static const auto call = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  return stop_write(fd) ? -1 : call(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t at) {
  static const auto call = next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
  return stop_write(fd) ? -1 : call(fd, data, n, at);
}
int fsync(int fd) {
  static const auto call = next<int (*)(int)>("fsync");
  const std::string path = path_of(fd);
  if (in_checkpoints(path)) {
    const std::lock_guard lock(calls().mutex);
    calls().log.push_back("sync " + path);
    if (calls().fails(calls().syncs++, calls().fail_sync)) {
      errno = calls().error;
      return -1;
    }
  }
  return call(fd);
}
int rename(const char* from, const char* to) noexcept {
  static const auto call = next<int (*)(const char*, const char*)>("rename");
  return stop_rename(from, to) ? -1 : call(from, to);
}
int renameat2(int, const char* from, int, const char* to, unsigned) noexcept {
  if (!in_checkpoints(from)) return -1;
  errno = EINVAL;  // as network file systems answer: the way without it is tested here
  (void)to;
  return -1;
}
}

namespace utrain {
namespace {

namespace fs = std::filesystem;

class Failure : public ::testing::Test {
 protected:
  Failure() {
    options.adapter = false;  // its stand-in is no code of ours
    path = save(place(), 100, layout, flat, options);
    forget();
  }
  ~Failure() override { forget(); }

  std::string place() const { return dir / "checkpoints"; }
  static void forget() {
    const std::lock_guard lock(calls().mutex);
    calls().writes = calls().syncs = calls().renames = 0;
    calls().fail_write = calls().fail_sync = calls().fail_rename = -1;
    calls().fail_later = false;
    calls().log.clear();
  }
  // The next save fails with io, soon, with this text; and the last one still loads.
  void expect_failure(const std::string& what, const std::string& reason) {
    SCOPED_TRACE(what);
    const auto start = std::chrono::steady_clock::now();
    expect_refused([&] { save(place(), 200, layout, other, options); }, ExitCode::io,
                   {"/checkpoints", reason});
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
    EXPECT_EQ(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL), 0) << "HDF5 holds on";
    forget();
    load(path, layout);
  }

  TempDir dir;
  TrainableLayout layout = small_layout();
  FlatState flat{layout, 1}, other{layout, 2};
  SaveOptions options;
  std::string path;
};

TEST_F(Failure, EveryWrite) {
  forget();
  save(place(), 150, layout, other, options);
  const int writes = calls().writes;
  ASSERT_GT(writes, 25);  // HDF5's are among them
  for (int k = 0; k < writes; ++k)
    for (const int error : {ENOSPC, EIO, EDQUOT}) {
      if (k % 3 != error % 3 && k > 12) continue;
      calls().fail_write = k;
      calls().fail_later = k % 2 == 0;
      calls().error = error;
      expect_failure(fmt::format("write {}", k), std::strerror(error));
      if (k < writes - 1)  // the last is LATEST's
        EXPECT_FALSE(fs::exists(place() + "/step-00000200"));
      else
        load(place() + "/step-00000200", layout);
    }
  load(save(place(), 200, layout, flat, options), layout);
}

TEST_F(Failure, EverySync) {
  save(place(), 150, layout, other, options);
  const int syncs = calls().syncs;
  ASSERT_GT(syncs, 8);
  for (int k = 0; k < syncs; ++k) {
    forget();
    calls().fail_sync = k;
    calls().error = EIO;
    expect_failure(fmt::format("sync {}", k), "Input/output error");
    for (const CheckpointPlace& found : list_checkpoints(place())) load(found.path, layout);
  }
  load(save(place(), 200, layout, flat, options), layout);
}

TEST_F(Failure, EveryRename) {
  save(place(), 150, layout, other, options);
  const int renames = calls().renames;
  ASSERT_EQ(renames, 5);  // state, manifest, COMMITTED, the directory, LATEST
  for (int k = 0; k < renames; ++k) {
    forget();
    calls().fail_rename = k;
    calls().error = EIO;
    expect_failure(fmt::format("rename {}", k), "Input/output error");
    for (const CheckpointPlace& found : list_checkpoints(place())) load(found.path, layout);
  }
}

TEST_F(Failure, ReplacingLeavesTheOldOneUntilTheNewIsThere) {
  save(place(), 100, layout, other, options);
  load(path, layout);
  EXPECT_EQ(names_in(place()), (std::vector<std::string>{"LATEST", "step-00000100"}));
}

// Synced after it was last written, then the name: files, manifest, COMMITTED, directory, rename.
TEST_F(Failure, CommitOrder) {
  save(place(), 200, layout, other, options);
  const std::vector<std::string>& log = calls().log;
  const std::string final_name = place() + "/step-00000200";
  const auto moved = std::find_if(log.begin(), log.end(), [&](const std::string& line) {
    return line.starts_with("rename ") && line.ends_with(" " + final_name);
  });
  ASSERT_NE(moved, log.end());
  const std::string temp = moved->substr(7, moved->find(' ', 7) - 7);
  std::map<std::string, int> last_write, last_sync;
  int committed = -1, last_other = -1;
  for (auto line = log.begin(); line != moved; ++line) {
    const int n = static_cast<int>(line - log.begin());
    EXPECT_EQ(line->find(final_name + "/"), std::string::npos) << *line;
    const std::string name = line->substr(line->find(' ') + 1);
    if (line->starts_with("write ")) last_write[name] = n;
    if (line->starts_with("sync ")) last_sync[name] = n;
    if (line->starts_with("rename ") && line->ends_with("/COMMITTED")) committed = n;
    if (line->starts_with("write ") && name.find("/COMMITTED") == std::string::npos) last_other = n;
  }
  EXPECT_EQ(last_write.size(), 3u + 1 + 3);  // shards, index, state, manifest, COMMITTED
  for (const auto& [name, n] : last_write) {
    ASSERT_TRUE(last_sync.contains(name)) << name << " is never synced";
    EXPECT_GT(last_sync[name], n) << name;
  }
  EXPECT_GT(committed, last_other) << "COMMITTED is written last";
  EXPECT_GT(last_sync[temp], committed) << "the directory is synced with COMMITTED in it";
  const auto parent = std::find(moved, log.end(), "sync " + place());
  const auto latest = std::find_if(moved, log.end(), [](const std::string& line) {
    return line.find("/LATEST") != std::string::npos;
  });
  EXPECT_LT(parent - log.begin(), latest - log.begin()) << "LATEST only names what is durable";
}

TEST_F(Failure, FileSizeLimit) {
  struct rlimit before, limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t bytes : {0, 1000, 5'000, 20'000, 40'000}) {
    limit = before;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      save(place(), 200, layout, other, options);
      ADD_FAILURE() << "saved within " << bytes << " bytes a file";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::io);
      EXPECT_NE(std::string(error.what()).find("File too large"), std::string::npos)
          << error.what();
    }
    setrlimit(RLIMIT_FSIZE, &before);
  }
  signal(SIGXFSZ, handler);
  load(path, layout);
}

TEST_F(Failure, FullFileSystem) {
  const std::string small = dir / "checkpoints-small";
  fs::create_directory(small);
  if (mount("tmpfs", small.c_str(), "tmpfs", 0, "size=300k") != 0)
    GTEST_SKIP() << "no tmpfs can be mounted here: " << std::strerror(errno);
  const std::string old = save(small, 1, layout, flat, {1, {}, false});
  const std::string temp = begin_checkpoint(small, 2, 0);
  expect_refused([&] { save_shard(temp, other, 0, cut(layout, 1)); }, ExitCode::io,
                 {"shard-00000-of-00001.h5", "bytes", "No space left on device"});
  load(old, layout);
  EXPECT_EQ(umount(small.c_str()), 0);
}

TEST_F(Failure, NamesThatAreTakenAreNotFollowed) {
  const std::string temp = begin_checkpoint(place(), 200, 0);
  write_bytes(dir / "precious", "x");
  fs::create_symlink(dir / "precious", temp + "/shard-00000-of-00002.h5");
  expect_refused([&] { save_shard(temp, flat, 0, cut(layout, 2)); }, ExitCode::io,
                 {"shard-00000-of-00002.h5", "File exists"});
  EXPECT_EQ(read_bytes(dir / "precious"), "x");
  expect_refused([&] { save_shard(temp + "/none", flat, 0, cut(layout, 2)); }, ExitCode::io,
                 {"none/shard-00000-of-00002.h5", "No such file or directory"});
  write_bytes(dir / "file", "x");
  expect_refused([&] { begin_checkpoint(dir / "file", 1, 0); }, ExitCode::io, {"file"});
}

}  // namespace
}  // namespace utrain
