#include "comm/last_words.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "comm/quiet_thread.h"

namespace utrain {
namespace {

constexpr double kClaiming = 0.75;  // s

void write_all(int file, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(file, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

void make_parent(const std::string& path) {
  mkdir(path.substr(0, path.rfind('/')).c_str(), 0777);  // where it fails, opening fails
}

}  // namespace

void run_bounded(const std::vector<std::function<void()>>& tasks, double seconds) {
  struct Left {
    std::mutex mutex;
    std::condition_variable changed;
    size_t n = 0;
  };
  const auto left = std::make_shared<Left>();
  for (const auto& task : tasks) {
    try {
      {
        const std::lock_guard lock(left->mutex);
        ++left->n;
      }
      quiet_thread([left, task] {
        task();
        const std::lock_guard lock(left->mutex);
        --left->n;
        left->changed.notify_all();
      }).detach();
    } catch (const std::system_error&) {  // no more threads: without this one
      const std::lock_guard lock(left->mutex);
      --left->n;
    }
  }
  std::unique_lock lock(left->mutex);
  left->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                         [&] { return left->n == 0; });
}

void write_error_line(const std::string& text) {
  write_all(STDERR_FILENO, fmt::format("utrain: error: {}\n", text));
}

Claim claim_file(const std::string& path, const std::string& text) {
  make_parent(path);
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file < 0) return errno == EEXIST ? Claim::taken : Claim::unknown;
  write_all(file, text + "\n");
  close(file);
  return Claim::mine;
}

Claim claim_on_node(const std::string& what) {
  const char* job = std::getenv("PMIX_NAMESPACE");
  if (job == nullptr) return Claim::unknown;
  // A name without a file: nothing is left behind.
  const std::string name = fmt::format("utrain-{}-{}-{}", what, getuid(), job);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const size_t n = std::min(name.size(), sizeof address.sun_path - 1);
  std::copy_n(name.data(), n, address.sun_path + 1);
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + n);
  const int held = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (held < 0) return Claim::unknown;
  if (bind(held, reinterpret_cast<const sockaddr*>(&address), bytes) == 0) return Claim::mine;
  const bool is_taken = errno == EADDRINUSE;
  close(held);
  return is_taken ? Claim::taken : Claim::unknown;
}

void say_once(const std::string& text, const std::string& crash_dir, int node, bool is_weak) {
  if (node >= 0 && !crash_dir.empty()) {
    const auto claim = std::make_shared<std::atomic<Claim>>(Claim::unknown);
    run_bounded({[=] { *claim = claim_file(crash_dir + "/hang.txt", text); }}, kClaiming);
    if (*claim == Claim::taken) return;
  } else if (node >= 0) {
    std::this_thread::sleep_for(
        std::chrono::milliseconds((is_weak ? 1500 : 0) + 100 * std::min(node, 5)));
  }
  write_error_line(text);
}

void write_crash_file(const std::string& path, const std::string& text) {
  make_parent(path);
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return;
  write_all(file, text);
  close(file);
}

}  // namespace utrain
