#include "io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <utility>
#include <vector>

namespace utrain {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// Opens a regular file for reading; its size comes from the open file, not from its name.
int open_for_reading(const std::string& path, ExitCode missing, int64_t& size) {
  // O_NONBLOCK: a pipe in the file's place must not stop us; it is refused below.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      fail(missing, path, "no such file", "check the path");
    }
    fail(ExitCode::bad_file, path, fmt::format("cannot be opened: {}", std::strerror(error)),
         "check its permissions");
  }
  struct stat info;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    fail(ExitCode::bad_file, path, "not a regular file", "name a file");
  }
  size = static_cast<int64_t>(info.st_size);
  return fd;
}

// A mapping as the handler of SIGBUS sees it. Entries are used again and never freed, so that it may
// walk the list at any time.
struct Mapping {
  std::atomic<uintptr_t> begin = 0;  // 0: free
  int64_t size = 0;
  std::string path, message;
  Mapping* next = nullptr;
};
std::atomic<Mapping*> first_mapping = nullptr;
struct sigaction action_before;  // MPI's, or the system's
std::mutex mappings_mutex;       // of those who change the list

bool nap(time_t seconds) {
  const timespec duration = {seconds, 0};
  return ::nanosleep(&duration, nullptr) == 0;
}

// The ranks of a node meet it at once, and one shall tell: who has the lock of the file, until the
// launcher ends the others. Where nobody does, each tells by itself.
void tell(const Mapping& mapping) {
  const int fd = ::open(mapping.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  const bool another = fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (another && !nap(3)) return;
  (void)!::write(STDERR_FILENO, mapping.message.data(), mapping.message.size());
  if (!another) nap(1);
}

// Only what is safe in a signal handler.
void on_sigbus(int, siginfo_t* info, void*) {
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Mapping* m = first_mapping.load(); m != nullptr; m = m->next) {
    const uintptr_t begin = m->begin.load();
    if (begin == 0 || at < begin || at - begin >= static_cast<uintptr_t>(m->size)) continue;
    tell(*m);
    ::_exit(static_cast<int>(ExitCode::bad_file));
  }
  ::sigaction(SIGBUS, &action_before, nullptr);  // not ours: the instruction meets it again
}

void watch_for_sigbus() {
  struct sigaction action = {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &action_before);
}

void remember_mapping(const std::byte* data, int64_t size, const std::string& path) {
  const std::lock_guard lock(mappings_mutex);
  if (first_mapping.load() == nullptr) watch_for_sigbus();
  Mapping* mapping = first_mapping.load();
  while (mapping != nullptr && mapping->begin.load() != 0) mapping = mapping->next;
  const bool is_new = mapping == nullptr;
  if (is_new) mapping = new Mapping;
  mapping->size = size;
  mapping->path = path;
  mapping->message = fmt::format(
      "utrain: error: {}: the file was cut, or its file system failed, while it was read; leave "
      "the files of a run alone until it has started, and check their disk\n",
      path);
  mapping->begin.store(reinterpret_cast<uintptr_t>(data));
  if (is_new) {
    mapping->next = first_mapping.load();
    first_mapping.store(mapping);
  }
}

void forget_mapping(const std::byte* data) {
  const std::lock_guard lock(mappings_mutex);
  for (Mapping* m = first_mapping.load(); m != nullptr; m = m->next) {
    if (m->begin.load() == reinterpret_cast<uintptr_t>(data)) m->begin.store(0);
  }
}

}  // namespace

void fail_io(const std::string& path, const std::string& what, int error) {
  fail(ExitCode::io, path, fmt::format("{}: {}", what, std::strerror(error)),
       "check free space, quota and permissions of its directory");
}

MappedFile::MappedFile(const std::string& path, ExitCode missing) : path_(path) {
  const Descriptor file(open_for_reading(path, missing, size_));
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) {
    fail_io(path, fmt::format("mapping {} bytes failed", size_), errno);
  }
  data_ = static_cast<const std::byte*>(data);
  remember_mapping(data_, size_, path_);
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  forget_mapping(data_);
  ::munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::string read_text_file(const std::string& path, int64_t max_bytes, ExitCode missing) {
  int64_t size = 0;
  const Descriptor file(open_for_reading(path, missing, size));
  if (size > max_bytes) {
    fail(ExitCode::bad_file, path,
         fmt::format("{} bytes found, at most {} wanted", size, max_bytes),
         "this is not a file of the expected kind");
  }
  std::string text(static_cast<size_t>(size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(file.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      fail(ExitCode::bad_file, path,
           fmt::format("reading {} bytes failed at {}: {}", size, done, std::strerror(errno)),
           "check the file and its file system");
    }
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

AtomicFile::AtomicFile(const std::string& path, FileSign sign)
    : path_(path), sign_(std::move(sign)) {
  show(sign_, path_);
  // The rename at the end would fail on a directory, and put a plain file in a device's place.
  struct stat info;
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    fail(ExitCode::io, path, "exists and is not a regular file", "name another file");
  }
  // A leftover of an earlier process with our id is not ours to open: take the next name.
  for (int attempt = 0; attempt < 100; ++attempt) {
    temp_path_ = fmt::format("{}.tmp-{}-{}", path, ::getpid(), attempt);
    fd_ = ::open(temp_path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd_ >= 0) return;
    if (errno != EEXIST) break;
  }
  fail_io(path, fmt::format("{} cannot be created", temp_path_), errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temp_path_.c_str());
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temp_path_(std::move(other.temp_path_)),
      sign_(std::move(other.sign_)),
      fd_(std::exchange(other.fd_, -1)),
      end_(other.end_),
      bytes_(other.bytes_) {}

void AtomicFile::write(const void* data, int64_t bytes) {
  write_at(end_, data, bytes);
  end_ += bytes;
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
  ASSERT(fd_ >= 0 && offset >= 0 && bytes >= 0);
  const char* begin = static_cast<const char*>(data);
  int64_t done = 0;
  while (done < bytes) {
    show(sign_, path_);
    const ssize_t n =
        ::pwrite(fd_, begin + done, static_cast<size_t>(std::min(bytes - done, kBytesOfASign)),
                 static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : ENOSPC;
      fail_io(path_, fmt::format("writing {} bytes at {} failed after {}", bytes, offset, done),
              error);
    }
    done += n;
  }
  bytes_ = std::max(bytes_, offset + bytes);
}

void AtomicFile::commit() {
  ASSERT(fd_ >= 0);
  if (const int error = sync_file_data(fd_, bytes_, sign_, path_); error != 0)
    fail_io(path_, "syncing failed", error);
  // close may report what a network file system wrote late; the descriptor is gone either way.
  const int closed = ::close(std::exchange(fd_, -1));
  if (closed != 0 || ::rename(temp_path_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temp_path_.c_str());
    fail_io(path_, closed != 0 ? "closing failed" : "renaming into place failed", error);
  }
  show(sign_, path_);
  const std::filesystem::path parent_path = std::filesystem::path(path_).parent_path();
  const std::string dir = parent_path.empty() ? std::string(".") : parent_path.string();
  sync_directory(dir);
  show(sign_, path_);
}

int sync_file_data(int fd, int64_t bytes, const FileSign& sign, const std::string& path) {
  constexpr int64_t kPiece = 4 * kBytesOfASign;
  // First all is on its way, then it is waited for: fsync alone would be silent for all of it. It
  // is still what counts; not every file system knows the other.
  const auto go_over = [&](unsigned flags) {
    for (int64_t at = 0; bytes > kPiece && at < bytes; at += kPiece) {
      show(sign, path);
      if (::sync_file_range(fd, at, std::min(kPiece, bytes - at), flags) == 0) continue;
      const int error = errno;
      return error == EIO || error == ENOSPC || error == EDQUOT ? error : 0;
    }
    return 0;
  };
  int error = go_over(SYNC_FILE_RANGE_WRITE);
  if (error == 0)
    error =
        go_over(SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  show(sign, path);
  if (error == 0 && ::fsync(fd) != 0) error = errno;
  show(sign, path);
  return error;
}

void sync_directory(const std::string& dir) {
  const Descriptor directory(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot sync a directory: then the rename is as durable as they make it.
  if (directory.get() >= 0 && ::fsync(directory.get()) != 0 && errno != EINVAL && errno != ENOTSUP)
    fail_io(dir, "syncing the directory failed", errno);
}

std::error_code remove_tree(const std::string& path, const FileSign& sign) {
  namespace fs = std::filesystem;
  std::error_code error, ignored;
  std::vector<fs::path> files;
  if (!fs::is_symlink(fs::symlink_status(path, ignored)))
    for (fs::recursive_directory_iterator it(path, error), end; !error && it != end;
         it.increment(error))
      if (!it->is_directory(ignored)) files.push_back(it->path());
  for (const fs::path& file : files) {
    show(sign, file.string());
    fs::remove(file, ignored);
  }
  show(sign, path);
  fs::remove_all(path, error);
  return error;
}

void write_text_file(const std::string& path, std::string_view text, const FileSign& sign) {
  AtomicFile file(path, sign);
  file.write(text.data(), static_cast<int64_t>(text.size()));
  file.commit();
}

}  // namespace utrain
