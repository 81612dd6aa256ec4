// What a power cut takes: data of a file that was not synced after it was written, names that were
// made, changed or removed without a sync of their directory since. POSIX promises no more than
// that; file systems keep more, so what is lost is chosen by a seed: of the names none, all or those
// from some moment on, of the data all or what follows the first unsynced byte.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "faults/journal.h"

namespace utrain {

namespace fs = std::filesystem;

class PowerCut {
 public:
  // dir: the run directory; state: what the library left (UTRAIN_FAULT_STATE).
  PowerCut(const std::string& dir, const std::string& state, uint64_t seed)
      : dir_(dir), state_(state), random_(seed) {
    for (const auto& entry : fs::directory_iterator(state)) {
      if (!entry.path().filename().string().starts_with("journal.")) continue;
      std::ifstream in(entry.path());
      // A rank that was killed may have left half a line.
      for (std::string line; std::getline(in, line) && !in.eof();)
        lines_.push_back(JournalLine::parse(line));
    }
    std::ranges::stable_sort(lines_, {}, &JournalLine::time);
  }

  // Once, and only when no rank lives. Leaves the directory as it would be found.
  void lose_unsynced() {
    lose_data();
    lose_names();
  }
  int files_lost() const { return files_lost_; }
  int names_lost() const { return names_lost_; }

 private:
  using JournalLines = std::vector<JournalLine>;
  struct Range {
    int64_t begin = 0, end = 0;
  };

  static uint64_t inode_of(const fs::path& path) {
    struct stat found;
    return ::lstat(path.c_str(), &found) == 0 ? found.st_ino : 0;
  }
  uint64_t below(uint64_t n) { return random_() % n; }

  void lose_data() {
    std::map<uint64_t, std::vector<Range>> unsynced;  // by inode
    for (const JournalLine& line : lines_) {
      if (line.what == "write")
        unsynced[line.inode].push_back({line.begin, line.begin + line.bytes});
      else if (line.what == "truncate")
        unsynced[line.inode].push_back({line.begin, line.begin});
      else if (line.what == "sync")
        unsynced.erase(line.inode);
    }
    for (const std::string& where : {dir_, state_}) {
      for (const auto& entry : fs::recursive_directory_iterator(where)) {
        const std::string name = entry.path().filename().string();
        if (!entry.is_regular_file() || (where == state_ && !name.starts_with("kept."))) continue;
        const auto found = unsynced.find(inode_of(entry.path()));
        if (found == unsynced.end()) continue;
        lose(entry.path(), found->second);
        ++files_lost_;
      }
    }
  }

  void lose(const fs::path& path, const std::vector<Range>& ranges) {
    const auto size = static_cast<int64_t>(fs::file_size(path));
    const int64_t first = std::ranges::min(ranges, {}, &Range::begin).begin;
    if (below(2) == 0) {
      fs::resize_file(path, static_cast<uintmax_t>(std::min(first, size)));
      return;
    }
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    for (const Range& range : ranges) {
      const int64_t n = std::min(range.end, size) - range.begin;
      if (n <= 0) continue;
      file.seekp(range.begin);
      file << std::string(static_cast<size_t>(n), '\0');
    }
  }

  bool is_durable(const JournalLine& name) const {
    const auto synced = [&](uint64_t inode) {
      return std::ranges::any_of(lines_, [&](const JournalLine& line) {
        return line.what == "sync" && line.inode == inode && line.time > name.time;
      });
    };
    return synced(name.inode) && (name.path2.empty() || synced(name.inode2));
  }

  void lose_names() {
    JournalLines open;
    for (const JournalLine& line : lines_) {
      const bool is_name = line.what != "write" && line.what != "truncate" && line.what != "sync";
      if (is_name && line.path != dir_ && !is_durable(line)) open.push_back(line);
    }
    const uint64_t fate = below(3);
    const size_t kept = fate == 0 ? 0 : fate == 1 ? open.size() : below(open.size() + 1);
    for (size_t i = open.size(); i > kept; --i) undo(open[i - 1]);
    names_lost_ = static_cast<int>(open.size() - kept);
  }

  // Where the directory of path lies now: it may have another name, or none.
  fs::path now(const std::string& path, uint64_t parent) const {
    const fs::path name = fs::path(path).filename();
    if (inode_of(dir_) == parent) return fs::path(dir_) / name;
    for (const auto& entry : fs::recursive_directory_iterator(dir_))
      if (entry.is_directory() && inode_of(entry.path()) == parent) return entry.path() / name;
    return {};
  }

  void undo(const JournalLine& line) {
    std::error_code ignored;
    const fs::path path = now(line.path, line.inode);
    if (path.empty()) return;
    if (line.what == "create" || line.what == "mkdir") fs::remove_all(path, ignored);
    if (line.what == "rmdir") fs::create_directory(path, ignored);
    if (line.what == "unlink" && !line.kept.empty()) fs::create_hard_link(line.kept, path, ignored);
    if (line.path2.empty()) return;
    const fs::path to = now(line.path2, line.inode2);
    if (line.what == "exchange" && !to.empty())
      ::renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE);
    // The kill may have come before the rename itself.
    if (to.empty() || fs::exists(path)) return;
    fs::rename(to, path, ignored);
    if (!line.kept.empty()) fs::create_hard_link(line.kept, to, ignored);
  }

  std::string dir_, state_;
  std::mt19937_64 random_;
  JournalLines lines_;
  int files_lost_ = 0, names_lost_ = 0;
};

}  // namespace utrain
