#include "comm/save_watch.h"

#include <fmt/core.h>

#include <utility>

namespace utrain {

void SaveWatch::set_limit(double seconds) {
  const std::lock_guard lock(mutex_);
  view_.limit = seconds;
}

void SaveWatch::begin(int64_t step) {
  const std::lock_guard lock(mutex_);
  is_under_way_ = true;
  ++n_signs_;
  view_ = {step, "", view_.limit, 0.0};
}

void SaveWatch::at(const std::string& file) {
  const std::lock_guard lock(mutex_);
  ++n_signs_;
  view_.file = file;
}

void SaveWatch::end() {
  const std::lock_guard lock(mutex_);
  is_under_way_ = false;
}

std::optional<SaveWatch::View> SaveWatch::look(double elapsed) {
  const std::lock_guard lock(mutex_);
  if (!is_under_way_) return std::nullopt;
  const bool moves = std::exchange(n_seen_, n_signs_) != n_signs_;
  view_.silent = moves ? 0.0 : view_.silent + elapsed;
  return view_;
}

std::string save_hang_text(const SaveWatch::View& view, int rank, const std::string& place,
                           const std::string& crash_dir) {
  return fmt::format(
      "rank {} on {}: no progress for {:.0f} s in writing checkpoint step {}, file {}; look there "
      "at the file system (df, dmesg), or raise run.hang_timeout if it was only slow{}",
      rank, place, view.silent, view.step, view.file,
      crash_dir.empty() ? "" : fmt::format(" (last calls of the ranks: {})", crash_dir));
}

}  // namespace utrain
