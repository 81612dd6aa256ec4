#include "checkpoint/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace utrain {

namespace {

constexpr auto kReadBytes = static_cast<size_t>(kBytesOfASign);

bool is_plain(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '_' || c == '-';
         });
}

std::string hexadecimal(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

class RegularFile {
 public:
  RegularFile(const std::string& dir, const std::string& name, ExitCode code)
      : path_(dir + "/" + name), code_(code) {
    struct stat info;
    if (const size_t slash = name.find('/'); slash != std::string::npos) {
      const std::string above = dir + "/" + name.substr(0, slash);
      if (::lstat(above.c_str(), &info) != 0) refuse(std::strerror(errno));
      if (!S_ISDIR(info.st_mode)) refuse(fmt::format("{} is no directory", above));
    }
    // O_NONBLOCK: a pipe in the file's place must not stop us.
    fd_ = ::open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) refuse(errno == ELOOP ? "is a link" : std::strerror(errno));
    if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
      ::close(fd_);
      refuse("is no regular file");
    }
    size_ = info.st_size;
  }
  ~RegularFile() { ::close(fd_); }
  RegularFile(const RegularFile&) = delete;
  RegularFile& operator=(const RegularFile&) = delete;

  int64_t size() const { return size_; }
  size_t read(char* buffer, size_t bytes) const {
    for (;;) {
      const ssize_t n = ::read(fd_, buffer, bytes);
      if (n >= 0) return static_cast<size_t>(n);
      if (errno != EINTR) refuse(fmt::format("cannot be read: {}", std::strerror(errno)));
    }
  }
  [[noreturn]] void refuse(const std::string& what) const {
    if (code_ == ExitCode::no_checkpoint) fail_checkpoint(path_, what);
    fail(code_, path_, what, "check the file system");
  }

 private:
  std::string path_;
  ExitCode code_;
  int fd_ = -1;
  int64_t size_ = 0;
};

}  // namespace

void fail_checkpoint(const std::string& where, const std::string& what) {
  fail(ExitCode::no_checkpoint, where, what,
       "this checkpoint is damaged: use another one, or start without (checkpoint.resume)");
}

std::string checkpoint_name(int64_t step) {
  return fmt::format("step-{:08}", step);
}

int64_t step_of_name(const std::string& name) {
  if (!name.starts_with("step-") || name.size() < 13 || name.size() > 20) return -1;
  int64_t step = 0;
  for (const char c : name.substr(5)) {
    if (c < '0' || c > '9') return -1;
    step = step * 10 + (c - '0');
  }
  return checkpoint_name(step) == name ? step : -1;
}

std::string shard_name(int64_t rank, int64_t ranks) {
  return fmt::format("shard-{:05}-of-{:05}.h5", rank, ranks);
}

bool is_checkpoint_file_name(const std::string& name) {
  const size_t slash = name.find('/');
  if (slash == std::string::npos) return is_plain(name);
  return is_plain(std::string_view(name).substr(0, slash)) &&
         is_plain(std::string_view(name).substr(slash + 1));
}

std::string xxh3_of(std::string_view bytes) {
  return hexadecimal(XXH3_128bits(bytes.data(), bytes.size()));
}

FileFacts read_facts(const std::string& dir, const std::string& name, ExitCode code,
                     const FileSign& sign) {
  const std::string path = dir + "/" + name;
  show(sign, path);
  const RegularFile file(dir, name, code);
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       XXH3_freeState);
  ASSERT(state != nullptr);
  XXH3_128bits_reset(state.get());
  const std::unique_ptr<char[]> buffer(new char[kReadBytes]);
  FileFacts facts{name, 0, ""};
  while (const size_t n = file.read(buffer.get(), kReadBytes)) {
    XXH3_128bits_update(state.get(), buffer.get(), n);
    facts.bytes += static_cast<int64_t>(n);
    show(sign, path);
  }
  facts.xxh3 = hexadecimal(XXH3_128bits_digest(state.get()));
  return facts;
}

std::string read_checkpoint_text(const std::string& dir, const std::string& name,
                                 int64_t max_bytes) {
  const RegularFile file(dir, name, ExitCode::no_checkpoint);
  if (file.size() > max_bytes)
    file.refuse(fmt::format("has {} bytes, at most {} wanted", file.size(), max_bytes));
  std::string text(static_cast<size_t>(file.size()), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const size_t n = file.read(text.data() + done, text.size() - done);
    if (n == 0) break;
    done += n;
  }
  text.resize(done);
  return text;
}

}  // namespace utrain
