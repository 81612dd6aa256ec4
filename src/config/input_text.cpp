#include "config/input_text.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "core/error.h"

namespace utrain {
namespace {

constexpr std::chrono::milliseconds kSign{1000};

struct File {
  int descriptor;
  ~File() {
    if (descriptor >= 0) close(descriptor);
  }
};

}  // namespace

std::string read_input_file(const std::string& file, std::chrono::milliseconds patience,
                            const std::function<void()>& waits) {
  const auto refuse = [&](std::string_view what, std::string_view remedy) {
    fail(ExitCode::usage, file, what, remedy);
  };
  // Without blocking: a pipe that nobody writes to would hold all ranks.
  const File opened{open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (opened.descriptor < 0 && (errno == ENOENT || errno == ENOTDIR))
    refuse("does not exist", file.starts_with("/dev/fd/")
                                 ? "mpirun hands no file on but /dev/stdin: name that one"
                                 : "give the path of an input.toml");
  struct stat status;
  if (opened.descriptor < 0 || fstat(opened.descriptor, &status) != 0)
    refuse(fmt::format("cannot be opened ({})", std::strerror(errno)), "make it readable");
  if (S_ISDIR(status.st_mode)) refuse("is a directory", "give the input.toml in it");

  std::string text(kMaxInputBytes + 1, '\0');
  size_t size = 0;
  std::chrono::milliseconds waited{0};
  while (size < text.size()) {
    pollfd input = {opened.descriptor, POLLIN, 0};
    const auto slice = std::min<std::chrono::milliseconds>(patience - waited, kSign);
    const int ready = poll(&input, 1, static_cast<int>(slice.count()));
    waits();
    waited = ready == 0 ? waited + slice : std::chrono::milliseconds{0};
    if (ready == 0 && waited < patience) continue;
    if (ready == 0)
      refuse(fmt::format("nothing comes out of it for {:.3g} s", 1e-3 * double(patience.count())),
             "give an input.toml, or a pipe that somebody writes to");
    const ssize_t n =
        ready < 0 ? -1 : read(opened.descriptor, text.data() + size, text.size() - size);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) refuse(fmt::format("cannot be read ({})", std::strerror(errno)), "make it readable");
    if (n == 0) break;
    size += static_cast<size_t>(n);
  }
  if (size > kMaxInputBytes)
    refuse("is larger than 64 KiB", "give an input.toml; token data belongs into data.train");
  text.resize(size);
  return text;
}

}  // namespace utrain
