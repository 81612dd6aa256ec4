#include "app/progress.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace utrain {

namespace {

// Open MPI hands every rank a terminal of its own, whatever its own output is: ask for the
// launcher's.
bool output_is_terminal() {
  if (isatty(STDOUT_FILENO) == 0) return false;
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return true;
  const std::string launcher = fmt::format("/proc/{}/fd/1", getppid());
  const int output = open(launcher.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (output < 0) return false;
  const bool terminal = isatty(output) != 0;
  close(output);
  return terminal;
}

}  // namespace

std::string text_of_bytes(int64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (b >= 1e9) return fmt::format("{:.2f} GB", b * 1e-9);
  if (b >= 1e6) return fmt::format("{:.1f} MB", b * 1e-6);
  return fmt::format("{:.1f} kB", b * 1e-3);
}

std::string text_of_duration(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.3g} us", seconds * 1e6);
  if (seconds < 1.0) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} s", seconds);
}

std::string text_of_seconds(double seconds) {
  if (seconds < 60.0) return fmt::format("{:.{}f} s", seconds, seconds < 10.0 ? 1 : 0);
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

std::string text_of_count(double n) {
  std::string digits = fmt::format("{:.0f}", n);
  for (auto i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

void flush_lines() {
  if (std::fflush(stdout) != 0 && errno == EPIPE) std::clearerr(stdout);
}

void check_output() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  fail(ExitCode::io, "standard output", "cannot be written",
       "check space, quota and where the output goes");
}

Progress::Progress(int64_t total_steps, int64_t every, bool every_is_given, int64_t first_step)
    : total_steps_(total_steps),
      every_(every),
      first_step_(first_step),
      every_is_given_(every_is_given),
      terminal_(output_is_terminal()),
      last_line_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  clear_bar();
}

bool Progress::line_is_due(int64_t step) const {
  if (step == first_step_ || step == total_steps_) return true;
  if (step % every_ != 0) return false;
  return terminal_ || every_is_given_ ||
         std::chrono::steady_clock::now() - last_line_ >= std::chrono::seconds(10);
}

void Progress::step(const StepStats& s) {
  ++steps_done_;
  step_seconds_ += s.seconds;
  const double left =
      step_seconds_ / static_cast<double>(steps_done_) * static_cast<double>(total_steps_ - s.step);
  if (line_is_due(s.step)) {
    note(fmt::format(
        "step {:>{}}/{}  loss {:.4f}  grad norm {:.3f}  lr {:.2e}  {} tokens/s  ETA {}{}", s.step,
        std::to_string(total_steps_).size(), total_steps_, s.loss, s.grad_norm, s.lr,
        text_of_count(static_cast<double>(s.tokens) / s.seconds), text_of_seconds(left),
        s.overflowed ? "  SKIPPED: float16 overflowed, the loss is scaled less"
        : s.skipped  ? "  SKIPPED: not finite"
                     : ""));
    last_line_ = std::chrono::steady_clock::now();
  }
  const double part = static_cast<double>(s.step) / static_cast<double>(total_steps_);
  const int width = 30, filled = static_cast<int>(part * width);
  draw_bar(fmt::format("[{}{}] {:3.0f} %  step {}/{}  loss {:.4f}  ETA {}",
                       std::string(static_cast<size_t>(filled), '='),
                       std::string(static_cast<size_t>(width - filled), ' '), part * 100.0, s.step,
                       total_steps_, s.loss, text_of_seconds(left)));
}

void Progress::evaluation(int64_t step, const EvalStats& stats) {
  note(fmt::format("step {}  eval loss {:.4f} over {} targets", step, stats.loss,
                   text_of_count(static_cast<double>(stats.target_tokens))));
}

void Progress::note(const std::string& text) {
  clear_bar();
  fmt::print("{}\n", text);
  flush_lines();
}

void Progress::busy(const std::string& what) {
  draw_bar(what);
}

void Progress::draw_bar(const std::string& text) {
  if (!terminal_) return;
  winsize size = {};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
  const size_t columns = known ? size.ws_col - 1u : 79u;
  fmt::print("\r{}\033[K", text.substr(0, columns));
  flush_lines();
  bar_is_drawn_ = true;
}

void Progress::clear_bar() {
  if (!bar_is_drawn_) return;
  fmt::print("\r\033[K");
  bar_is_drawn_ = false;
}

}  // namespace utrain
