#include "core/process.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <string>

namespace utrain {

namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kUnlimited;  // "max" is not a number
}

// cgroup v2: what Slurm and containers set for this process, at its own level or any above it.
int64_t cgroup_memory_left() {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  int64_t left = kUnlimited;
  while (std::getline(file, line)) {
    if (line.rfind("0::", 0) != 0) continue;
    std::string group = line.substr(3);
    while (true) {
      const std::string dir = "/sys/fs/cgroup" + group;
      const int64_t limit = number_in(dir + "/memory.max"),
                    used = number_in(dir + "/memory.current");
      if (limit != kUnlimited && used != kUnlimited)
        left = std::min(left, std::max<int64_t>(0, limit - used));
      const size_t slash = group.rfind('/');
      if (group.empty() || slash == std::string::npos) break;
      group.resize(slash);
    }
  }
  return left;
}

}  // namespace

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kilobytes = 0, available = kUnlimited;
  while (file >> key >> kilobytes >> unit) {
    if (key == "MemAvailable:") available = kilobytes * 1024;
  }
  return std::min(available, cgroup_memory_left());
}

int64_t bytes_moved() {
  std::ifstream file("/proc/self/io");
  std::string key;
  int64_t bytes = 0, sum = 0;
  while (file >> key >> bytes)
    if (key == "rchar:" || key == "wchar:") sum += bytes;
  return sum;
}

int64_t peak_memory() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

double seconds_since_exec() {
  // Field 22, counted behind the name in parentheses, which may hold anything: ticks after boot.
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 2)));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) -
         std::atof(field.c_str()) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace utrain
