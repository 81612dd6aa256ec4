// Files: a read-only mapping, bounded reading of text, and writing that leaves either the old file
// or the whole new one.
//   Reading a mapping whose file was cut meanwhile, or whose disk fails, raises SIGBUS: the process
//   then says which file it was and leaves with bad_file, whatever else it is doing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "core/process.h"

namespace utrain {

// "PATH: WHAT: the system's words for errno ERROR", with exit code io.
[[noreturn]] void fail_io(const std::string& path, const std::string& what, int error);

// Is told where reading and writing is, by its path: before and after each MB
// (kBytesOfASign), each sync and each change of names, so that whoever watches can tell a slow disk
// from one that stands still. May be empty.
using FileSign = std::function<void(const std::string& path)>;
inline void show(const FileSign& sign, const std::string& path) {
  if (sign) sign(path);
}

// The whole file, read only. Missing: `missing`; not a regular file or unreadable: bad_file.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path, ExitCode missing = ExitCode::usage);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }  // nullptr where size() == 0
  int64_t size() const { return size_; }           // bytes

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// The largest config.json of a model, or adapter_config.json, that is read.
inline constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;

// Missing: `missing`; not a regular file, unreadable or larger than max_bytes: bad_file.
std::string read_text_file(const std::string& path, int64_t max_bytes,
                           ExitCode missing = ExitCode::usage);

// A new file beside `path` that takes its place in commit(): data synced, renamed, directory
// synced. Destroyed before that, it removes itself. Every failure is Error(io) that names the path
// and the bytes.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path, FileSign sign = {});
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;

  void write(const void* data, int64_t bytes);                     // after what was written last
  void write_at(int64_t offset, const void* data, int64_t bytes);  // from the file's start
  void commit();
  const std::string& path() const { return path_; }

 private:
  std::string path_, temp_path_;
  FileSign sign_;
  int fd_ = -1;
  int64_t end_ = 0;    // of what write() wrote
  int64_t bytes_ = 0;  // of the file
};

// Makes the first `bytes` of a file durable, a piece at a time: 0, or what errno says.
int sync_file_data(int fd, int64_t bytes, const FileSign& sign, const std::string& path);
// Makes durable which names a directory holds, as far as its file system can. Fails with io.
void sync_directory(const std::string& dir);

// Removes what has this name, if anything has, with all that is in it; not what a link leads to. The
// first thing that cannot be removed is told by the error, and what can be goes all the same.
std::error_code remove_tree(const std::string& path, const FileSign& sign = {});

// Through AtomicFile.
void write_text_file(const std::string& path, std::string_view text, const FileSign& sign = {});

}  // namespace utrain
