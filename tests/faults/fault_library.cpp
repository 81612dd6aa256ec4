// A library that stands before the system's in the ranks of a job (LD_PRELOAD) and makes one call of
// one rank go wrong (injector.h), so that the program itself needs no hook. Here: files, and computing.
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstring>

#include "injector.h"

namespace {

using namespace utrain;

// So that pid and clock are those of the start.
[[gnu::constructor]] void start() {
  faults();
}

template <class F>
F next(F, const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

std::string path_of(int fd) {
  char path[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const auto n = syscall(SYS_readlink, link.c_str(), path, sizeof path);
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "";
}
std::string path_at(int dir, const char* name) {
  if (name[0] == '/') return name;
  char here[4096];
  const std::string base =
      dir != AT_FDCWD ? path_of(dir) : (getcwd(here, sizeof here) != nullptr ? here : "");
  return base + "/" + name;
}

uint64_t inode_of(const std::string& path) {
  struct stat found;
  return stat(path.c_str(), &found) == 0 ? found.st_ino : 0;
}
uint64_t parent_of(const std::string& path) {
  return inode_of(path.substr(0, path.rfind('/')));
}

// A call that makes or removes the name `path`.
template <class Call>
int named(const char* call, const char* what, const std::string& path, Call&& real) {
  Faults& f = faults();
  if (!f.is_ours(path)) return real();
  const int before = errno;
  switch (f.meet(call, f.inside(path))) {
    case Then::fail: return -1;
    case Then::skip: return 0;
    default: errno = before;
  }
  if (f.has_journal()) {
    JournalLine line{0, what, parent_of(path), 0, 0, 0, path, "", ""};
    if (line.what == "unlink") line.kept = f.keep(path);
    f.note(line);
  }
  return real();
}

template <class Call>
int renamed(const std::string& from, const std::string& to, Call&& real, unsigned flags = 0) {
  Faults& f = faults();
  if (!f.is_ours(from) && !f.is_ours(to)) return real();
  switch (f.meet("rename", f.inside(from) + " " + f.inside(to))) {
    case Then::fail: return -1;
    case Then::skip: return 0;
    default: break;
  }
  const bool exchanges = (flags & RENAME_EXCHANGE) != 0;
  if (f.has_journal())
    f.note({0, exchanges ? "exchange" : "rename", parent_of(from), parent_of(to), 0, 0, from, to,
            exchanges ? "" : f.keep(to)});
  return real();
}

template <class Call>
int opened(const std::string& path, int flags, Call&& real) {
  Faults& f = faults();
  if (!f.is_ours(path)) return real();
  if (f.meet("open", f.inside(path)) == Then::fail) return -1;
  if ((flags & O_CREAT) == 0) return real();
  if (inode_of(path) == 0) return named("create", "create", path, real);
  const int fd = real();
  if (fd >= 0 && (flags & O_TRUNC) != 0 && f.has_journal())
    f.note({0, "truncate", inode_of(path), 0, 0, 0, path, "", ""});
  return fd;
}

// at < 0: where the file stands. real(data, n)
template <class Call>
ssize_t written(int fd, const void* data, size_t n, off_t at, Call&& real) {
  Faults& f = faults();
  const std::string path = path_of(fd);
  if (!f.is_ours(path)) return real(data, n);
  const Then then = f.meet("write", f.inside(path));
  if (then == Then::skip) return static_cast<ssize_t>(n);
  if (then == Then::fail && n < 2) return -1;
  if (f.has_journal()) {
    struct stat found;
    fstat(fd, &found);
    if (at < 0) {
      const bool appends = (fcntl(fd, F_GETFL) & O_APPEND) != 0;
      at = appends ? found.st_size : lseek(fd, 0, SEEK_CUR);
    }
    f.note({0, "write", found.st_ino, 0, at, static_cast<int64_t>(n), path, "", ""});
  }
  if (then == Then::fail) {
    const int error = errno;
    real(data, n / 2);
    errno = error;
    return -1;
  }
  if (then == Then::halve) {
    real(data, n / 2);
    return static_cast<ssize_t>(n);
  }
  if (then != Then::flip || n == 0) return real(data, n);
  std::string copy(static_cast<const char*>(data), n);
  copy[n / 2] = static_cast<char>(copy[n / 2] ^ 4);
  return real(copy.data(), n);
}

template <class Call>
int on_file(const char* call, const char* what, int fd, int64_t bytes, Call&& real) {
  Faults& f = faults();
  const std::string path = path_of(fd);
  if (!f.is_ours(path)) return real();
  switch (f.meet(call, f.inside(path))) {
    case Then::fail: return -1;
    case Then::skip: return 0;
    default: break;
  }
  const bool is_sync = std::strcmp(what, "sync") == 0;
  struct stat found;
  fstat(fd, &found);
  const JournalLine line{0, what, found.st_ino, 0, bytes, 0, path, "", ""};
  if (f.has_journal() && what[0] != '\0' && !is_sync) f.note(line);
  const int code = real();
  if (f.has_journal() && is_sync && code == 0) f.note(line);
  return code;
}

mode_t mode_of(int flags, va_list list) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, mode_t) : 0;
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t n) {
  static const auto real = next(&write, "write");
  return written(fd, data, n, -1, [&](const void* d, size_t m) { return real(fd, d, m); });
}
ssize_t pwrite(int fd, const void* data, size_t n, off_t at) {
  static const auto real = next(&pwrite, "pwrite");
  return written(fd, data, n, at, [&](const void* d, size_t m) { return real(fd, d, m, at); });
}
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t at) {
  static const auto real = next(&pwrite64, "pwrite64");
  return written(fd, data, n, at, [&](const void* d, size_t m) { return real(fd, d, m, at); });
}
int fsync(int fd) {
  static const auto real = next(&fsync, "fsync");
  return on_file("fsync", "sync", fd, 0, [&] { return real(fd); });
}
int fdatasync(int fd) {
  static const auto real = next(&fdatasync, "fdatasync");
  return on_file("fsync", "sync", fd, 0, [&] { return real(fd); });
}
int ftruncate(int fd, off_t bytes) noexcept {
  static const auto real = next(&ftruncate, "ftruncate");
  return on_file("truncate", "truncate", fd, bytes, [&] { return real(fd, bytes); });
}
int ftruncate64(int fd, off64_t bytes) noexcept {
  static const auto real = next(&ftruncate64, "ftruncate64");
  return on_file("truncate", "truncate", fd, bytes, [&] { return real(fd, bytes); });
}
int truncate(const char* path, off_t bytes) noexcept {
  static const auto real = next(&truncate, "truncate");
  return named("truncate", "cut", path_at(AT_FDCWD, path), [&] { return real(path, bytes); });
}
int close(int fd) {
  static const auto real = next(&close, "close");
  return on_file("close", "", fd, 0, [&] { return real(fd); });
}
int open(const char* path, int flags, ...) {
  static const auto real = next(&open, "open");
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return opened(path_at(AT_FDCWD, path), flags, [&] { return real(path, flags, mode); });
}
int open64(const char* path, int flags, ...) {
  static const auto real = next(&open64, "open64");
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return opened(path_at(AT_FDCWD, path), flags, [&] { return real(path, flags, mode); });
}
int openat(int dir, const char* path, int flags, ...) {
  static const auto real = next(&openat, "openat");
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return opened(path_at(dir, path), flags, [&] { return real(dir, path, flags, mode); });
}
int openat64(int dir, const char* path, int flags, ...) {
  static const auto real = next(&openat64, "openat64");
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return opened(path_at(dir, path), flags, [&] { return real(dir, path, flags, mode); });
}
int mkdir(const char* path, mode_t mode) noexcept {
  static const auto real = next(&mkdir, "mkdir");
  return named("mkdir", "mkdir", path_at(AT_FDCWD, path), [&] { return real(path, mode); });
}
int unlink(const char* path) noexcept {
  static const auto real = next(&unlink, "unlink");
  return named("unlink", "unlink", path_at(AT_FDCWD, path), [&] { return real(path); });
}
int rmdir(const char* path) noexcept {
  static const auto real = next(&rmdir, "rmdir");
  return named("unlink", "rmdir", path_at(AT_FDCWD, path), [&] { return real(path); });
}
int remove(const char* path) noexcept {
  struct stat found;
  return lstat(path, &found) == 0 && S_ISDIR(found.st_mode) ? rmdir(path) : unlink(path);
}
int unlinkat(int dir, const char* path, int flags) noexcept {
  static const auto real = next(&unlinkat, "unlinkat");
  return named("unlink", (flags & AT_REMOVEDIR) != 0 ? "rmdir" : "unlink", path_at(dir, path),
               [&] { return real(dir, path, flags); });
}
int rename(const char* from, const char* to) noexcept {
  static const auto real = next(&rename, "rename");
  return renamed(path_at(AT_FDCWD, from), path_at(AT_FDCWD, to), [&] { return real(from, to); });
}
int renameat(int from_dir, const char* from, int to_dir, const char* to) noexcept {
  static const auto real = next(&renameat, "renameat");
  return renamed(path_at(from_dir, from), path_at(to_dir, to),
                 [&] { return real(from_dir, from, to_dir, to); });
}
int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) noexcept {
  static const auto real = next(&renameat2, "renameat2");
  return renamed(
      path_at(from_dir, from), path_at(to_dir, to),
      [&] { return real(from_dir, from, to_dir, to, flags); }, flags);
}

// Computing, which every rank does between its calls. Enumerations are int here.
void cblas_sgemm(int layout, int transa, int transb, int m, int n, int k, float alpha,
                 const float* a, int lda, const float* b, int ldb, float beta, float* c, int ldc) {
  static const auto real = next(&cblas_sgemm, "cblas_sgemm");
  faults().meet("cblas_sgemm", "");
  real(layout, transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // extern "C"
