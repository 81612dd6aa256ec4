#include "app/stop.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <string_view>

#include "core/process.h"

namespace utrain {
namespace {

// Of the first signal: when it came, in ms, and in the last three digits its number; 0 = none yet.
std::atomic<int64_t> first_signal{0};
static_assert(std::atomic<int64_t>::is_always_lock_free);
constexpr int64_t kNumbers = 1000;

void on_signal(int signal) {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const int64_t ms = int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
  int64_t first = 0;
  if (first_signal.compare_exchange_strong(first, ms * kNumbers + signal)) return;
  if (ms - first / kNumbers > StopSignals::kSameSignal.count()) _exit(128 + signal);
}

void on_lost_reader(int /*signal*/) {
  const int error = errno;
  for (const int output : {STDOUT_FILENO, STDERR_FILENO}) {
    pollfd state = {output, 0, 0};
    if (poll(&state, 1, 0) != 1 || (state.revents & POLLERR) == 0) continue;
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(nowhere, output);
    close(nowhere);
  }
  errno = error;
}

std::string_view name_of_signal(int64_t signal) {
  switch (signal) {
    case SIGUSR1: return "SIGUSR1";
    case SIGTERM: return "SIGTERM";
    case SIGINT: return "SIGINT";
    default: return "a signal";
  }
}

// Seconds from now to the end of the Slurm job. One that is past belongs to a job long gone.
std::optional<double> slurm_seconds_left() {
  const char* text = std::getenv("SLURM_JOB_END_TIME");
  if (text == nullptr) return std::nullopt;
  const std::string_view digits = text;
  int64_t end = 0;
  const auto [stop, error] = std::from_chars(digits.begin(), digits.end(), end);
  if (error != std::errc() || stop != digits.end()) return std::nullopt;
  const int64_t now = std::time(nullptr);
  if (end <= now) return std::nullopt;
  return static_cast<double>(end - now);
}

}  // namespace

StopSignals::StopSignals() {
  sigaction(kSignals[0], nullptr, &before_[0]);
  if (before_[0].sa_handler != on_signal) first_signal = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // reads and writes under way go on
  sigfillset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before_[i]);
  if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr) return;
  action.sa_handler = on_lost_reader;
  sigaction(SIGPIPE, &action, &before_pipe_.emplace());
}

StopSignals::~StopSignals() {
  restore();
}

void StopSignals::give_back() {
  restore();
  if (const int64_t first = first_signal; first != 0) raise(static_cast<int>(first % kNumbers));
}

void StopSignals::restore() {
  if (!has_them_) return;
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  if (before_pipe_) sigaction(SIGPIPE, &*before_pipe_, nullptr);
  has_them_ = false;
}

StopRequest::~StopRequest() {
  std::error_code ignored;
  if (found_file_) std::filesystem::remove(stop_file_, ignored);
}

void StopRequest::limit_time(double max_hours) {
  const auto in_seconds = [](double seconds) {
    constexpr double kYear = 365.0 * 24 * 3600;
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                              std::chrono::duration<double>(std::min(seconds, kYear)));
  };
  time_limit_.reset();
  if (max_hours > 0.0) {
    time_limit_ = in_seconds(max_hours * 3600.0 - seconds_since_exec());
    limit_text_ = fmt::format("run.max_hours = {} reached", max_hours);
    return;
  }
  if (const auto left = slurm_seconds_left()) {
    const double margin = std::min(kSlurmMargin, *left / 4.0);  // short jobs get to their steps
    time_limit_ = in_seconds(*left - margin);
    limit_text_ = fmt::format("the Slurm job ends in {:.0f} s", margin);
  }
}

void StopRequest::look_into(const std::string& run_dir) {
  stop_file_ = run_dir + "/STOP";
  next_look_ = Clock::now();
}

std::string StopRequest::reason() {
  if (reason_.empty()) reason_ = find_reason();
  return reason_;
}

std::string StopRequest::find_reason() {
  if (const int64_t first = first_signal; first != 0)
    return std::string(name_of_signal(first % kNumbers));
  const auto now = Clock::now();
  if (time_limit_ && now >= *time_limit_) return limit_text_;
  if (stop_file_.empty() || now < next_look_) return "";
  next_look_ = now + std::chrono::seconds(1);
  std::error_code ignored;
  found_file_ = std::filesystem::exists(stop_file_, ignored);
  return found_file_ ? fmt::format("file {}", stop_file_) : "";
}

}  // namespace utrain
