// What the library in the ranks knows: which fault strikes at which call. The environment:
//   UTRAIN_FAULT        what goes wrong (fault.h)
//   UTRAIN_FAULT_DIR    the run directory: other files are let alone
//   UTRAIN_FAULT_STATE  a directory for pid.RANK, for `fired` (a line for each fault that struck)
//                       and, where a power cut is asked for, for the journal (journal.h)
// Its own files are written by system calls, never through what the library stands before.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <string>
#include <thread>

#include "fault.h"
#include "journal.h"

namespace utrain {

inline constexpr int kNewFile = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;

inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

inline void append(int fd, const std::string& text) {
  [[maybe_unused]] const auto n = syscall(SYS_write, fd, text.data(), text.size());
}
inline int open_new(const std::string& path) {
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path.c_str(), kNewFile, 0600));
}

inline void sleep_seconds(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

// What the caller does about its call.
enum class Then { go_on, fail, flip, halve, skip };

class Faults {
 public:
  Faults()
      : dir_(environment("UTRAIN_FAULT_DIR")),
        state_(environment("UTRAIN_FAULT_STATE")),
        rank_(std::atoi(environment("OMPI_COMM_WORLD_RANK").c_str())) {
    if (dir_.empty() || state_.empty()) return;
    for (const Fault& fault : parse_faults(environment("UTRAIN_FAULT"))) {
      if (fault.action == "powercut" && journal_ < 0)
        journal_ = open_new(state_ + "/journal." + std::to_string(rank_));
      if (fault.is_for(rank_)) armed_.emplace_back(fault);
    }
    const int pid = open_new(state_ + "/pid." + std::to_string(rank_));
    append(pid, std::to_string(getpid()) + "\n");
    syscall(SYS_close, pid);
    for (Armed& armed : armed_) {
      if (armed.fault.call != "time") continue;
      std::thread([this, &armed] {
        sleep_seconds(1e-3 * static_cast<double>(armed.fault.nth));
        act(armed.fault, "time", "");
      }).detach();
    }
  }

  bool is_ours(const std::string& path) const {
    return !dir_.empty() && path.starts_with(dir_) &&
           (path.size() == dir_.size() || path[dir_.size()] == '/');
  }
  // As the faults name it: from the run directory on, "/checkpoints/LATEST".
  std::string inside(const std::string& path) const {
    return is_ours(path) ? path.substr(dir_.size()) : path;
  }
  // path: from inside(). Sets errno where the call is to fail.
  Then meet(const char* call, const std::string& path) {
    Then then = Then::go_on;
    for (Armed& armed : armed_) {
      const Fault& fault = armed.fault;
      if (!fault.is_of(call, path)) continue;
      const int64_t n = ++armed.seen;
      if (n == fault.nth || (fault.and_later && n > fault.nth)) then = act(fault, call, path);
    }
    return then;
  }
  bool has_journal() const { return journal_ >= 0; }
  void note(JournalLine line) {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    line.time = int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
    append(journal_, line.text());
  }
  // A link to the file of this name, which is about to go; "" where it is none.
  std::string keep(const std::string& path) {
    static std::atomic<int> n = 0;
    const std::string kept = state_ + "/kept." + std::to_string(rank_) + "." + std::to_string(n++);
    return syscall(SYS_link, path.c_str(), kept.c_str()) == 0 ? kept : "";
  }

 private:
  struct Armed {
    explicit Armed(const Fault& f) : fault(f) {}
    Fault fault;
    std::atomic<int64_t> seen = 0;
  };

  Then act(const Fault& fault, const std::string& call, const std::string& path) {
    const std::string& action = fault.action;
    const int fired = open_new(state_ + "/fired");
    append(fired, std::to_string(rank_) + " " + action + " " + call + " " + path + "\n");
    syscall(SYS_close, fired);
    if (action == "kill") kill(getpid(), SIGKILL);
    if (action == "killall" || action == "powercut") kill_all();
    if (action == "stop") kill(getpid(), SIGSTOP);
    if (action == "segv") raise(SIGSEGV);
    if (action == "abort") std::abort();
    if (action == "sleep") sleep_seconds(std::stod(fault.value));
    if (action == "exit") _exit(std::stoi(fault.value));
    if (action == "signal") kill(getpid(), std::stoi(fault.value));
    if (action == "flip") return Then::flip;
    if (action == "halve") return Then::halve;
    if (action == "skip") return Then::skip;
    errno = action == "enospc" ? ENOSPC : action == "eio" ? EIO : action == "edquot" ? EDQUOT : 0;
    return errno != 0 ? Then::fail : Then::go_on;
  }

  [[noreturn]] void kill_all() {
    for (int r = 0; r < 1024; ++r) {
      char text[32] = "";
      const std::string path = state_ + "/pid." + std::to_string(r);
      const auto fd = static_cast<int>(syscall(SYS_openat, AT_FDCWD, path.c_str(), O_RDONLY, 0));
      if (fd < 0) continue;
      const bool is_read = syscall(SYS_read, fd, text, sizeof text - 1) > 0;
      syscall(SYS_close, fd);
      if (is_read && r != rank_) kill(std::atoi(text), SIGKILL);
    }
    for (;;) kill(getpid(), SIGKILL);
  }

  std::string dir_, state_;
  int rank_;
  int journal_ = -1;
  std::deque<Armed> armed_;
};

// Never destroyed: ranks write until their very end.
inline Faults& faults() {
  static auto* const all = new Faults;
  return *all;
}
}  // namespace utrain
