// Memory that may be taken, read from trees that stand for /proc and /sys.
#include "core/available_memory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "io_files.h"

namespace utrain {
namespace {

constexpr int64_t GB = 1'000'000'000;

class AvailableMemory : public testing::Test {
 protected:
  AvailableMemory() {
    write("proc/meminfo", fmt::format("MemTotal: {0} kB\nMemFree: 1 kB\nMemAvailable: {0} kB\n"
                                      "HugePages_Total: 0\n",
                                      64 * GB / 1024));
  }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir_ / path).parent_path());
    write_bytes(dir_ / path, text);
  }
  void write_v2(const std::string& group, const std::string& limit, int64_t used, int64_t files) {
    const std::string dir = "sys/fs/cgroup" + group;
    write(dir + "/memory.max", limit + "\n");
    write(dir + "/memory.current", fmt::format("{}\n", used));
    write(dir + "/memory.stat",
          fmt::format("anon 5\nfile {0}\ninactive_file {1}\nactive_file {2}\n", files, files / 4,
                      files - files / 4));
  }
  void write_v1(const std::string& group, const std::string& limit, int64_t used, int64_t files) {
    const std::string dir = "sys/fs/cgroup/memory" + group;
    write(dir + "/memory.limit_in_bytes", limit + "\n");
    write(dir + "/memory.usage_in_bytes", fmt::format("{}\n", used));
    write(dir + "/memory.stat",
          fmt::format("inactive_file 1\nactive_file 1\ntotal_inactive_file {}\n"
                      "total_active_file {}\n",
                      files / 4, files - files / 4));
  }
  int64_t available() const { return available_memory(dir_.str()); }

  TempDir dir_;
};

TEST_F(AvailableMemory, IsWhatTheKernelSays) {
  EXPECT_EQ(available(), 64 * GB);
  write("proc/self/cgroup", "0::/user.slice\n");
  EXPECT_EQ(available(), 64 * GB) << "a group without limits";
  write_v2("/user.slice", "max", 60 * GB, 0);
  EXPECT_EQ(available(), 64 * GB);
  EXPECT_GT(available_memory(), 0) << "of this machine";
}

TEST_F(AvailableMemory, IsWhatTheLeastOfTheGroupsLeaves) {
  write("proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  write_v2("/slurm/job_7/step_0", fmt::format("{}", 40 * GB), 4 * GB, 0);
  EXPECT_EQ(available(), 36 * GB);
  write_v2("/slurm/job_7", fmt::format("{}", 30 * GB), 12 * GB, 0);
  EXPECT_EQ(available(), 18 * GB);
  write_v2("/slurm", fmt::format("{}", 100 * GB), 1 * GB, 0);
  EXPECT_EQ(available(), 18 * GB);
  write_v2("", fmt::format("{}", 10 * GB), 11 * GB, 0);  // the mount of a container
  EXPECT_EQ(available(), 0);
}

// A job that has read its model and data holds them in the page cache: that memory is free.
TEST_F(AvailableMemory, CountsFilesInThePageCacheAsFree) {
  write("proc/self/cgroup", "0::/job\n");
  write_v2("/job", fmt::format("{}", 40 * GB), 39 * GB, 36 * GB);
  EXPECT_EQ(available(), 37 * GB);
}

TEST_F(AvailableMemory, KnowsGroupsOfTheFirstVersion) {
  write("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/slurm/job_7\n1:name=systemd:/\n0::/\n");
  write_v1("/slurm", "9223372036854771712", 50 * GB, 0);
  write_v1("/slurm/job_7", fmt::format("{}", 20 * GB), 18 * GB, 8 * GB);
  EXPECT_EQ(available(), 10 * GB);
  write("proc/self/cgroup", "4:memory:/docker/a1\n");  // not seen from inside, but as the mount
  write_v1("", fmt::format("{}", 5 * GB), 1 * GB, 0);
  EXPECT_EQ(available(), 4 * GB);
}

}  // namespace
}  // namespace utrain
