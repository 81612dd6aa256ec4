#include "core/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>

namespace utrain {

namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// How a hierarchy of control groups is named in /proc/self/cgroup, where it is mounted, and what
// its files and the keys of memory.stat are called. A group's numbers are those of all below it.
struct Hierarchy {
  const char *controllers, *mount, *limit, *used, *inactive_file, *active_file;
};
constexpr Hierarchy kHierarchies[] = {
    {"", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file", "active_file"},
    {"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file", "total_active_file"}};

int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kUnlimited;  // "max" is not a number
}

// What the kernel drops where a group reaches its limit.
int64_t droppable_memory(const std::string& path, const Hierarchy& h) {
  std::ifstream file(path);
  std::string key;
  int64_t bytes = 0, sum = 0;
  while (file >> key >> bytes)
    if (key == h.inactive_file || key == h.active_file) sum += bytes;
  return sum;
}

int64_t left_in_group(const std::string& dir, const Hierarchy& h) {
  const int64_t limit = number_in(dir + "/" + h.limit), used = number_in(dir + "/" + h.used);
  if (limit == kUnlimited || used == kUnlimited) return kUnlimited;
  const int64_t held = std::max<int64_t>(0, used - droppable_memory(dir + "/memory.stat", h));
  return std::max<int64_t>(0, limit - held);
}

// At this process's own level and any above it.
int64_t left_in_groups(const std::string& root) {
  std::ifstream file(root + "/proc/self/cgroup");
  int64_t left = kUnlimited;
  for (std::string line; std::getline(file, line);) {  // "4:memory:/slurm/job_7", "0::/user"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    for (const Hierarchy& h : kHierarchies) {
      if (controllers != h.controllers) continue;
      std::string group = line.substr(second + 1);
      while (true) {
        left = std::min(left, left_in_group(root + h.mount + group, h));
        const size_t slash = group.rfind('/');
        if (slash == group.npos) break;
        group.resize(slash);
      }
    }
  }
  return left;
}

}  // namespace

int64_t available_memory(const std::string& root) {
  std::ifstream file(root + "/proc/meminfo");
  std::string key, unit;
  int64_t kilobytes = 0, available = kUnlimited;
  while (file >> key >> kilobytes >> unit) {
    if (key == "MemAvailable:") available = kilobytes * 1024;
  }
  return std::min(available, left_in_groups(root));
}

}  // namespace utrain
