// Starts ranks with the fault library before them, and tells which faults struck.
#pragma once

#include <chrono>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "faults/power_cut.h"
#include "launch.h"

namespace utrain {

inline std::string fault_library() {
  const char* given = std::getenv("UTRAIN_FAULT_LIBRARY");
  return given != nullptr ? given : UTRAIN_FAULT_LIBRARY;
}

// One fault that struck: "0 kill rename /run/tmp /run/save-1".
struct Struck {
  int rank = 0;
  std::string action, call, paths;
};

class FaultLaunch {
 public:
  // faults: as fault.h has them; dir: the run directory, absolute and without links.
  FaultLaunch(int ranks, const std::vector<std::string>& arguments, const std::string& dir,
              const std::string& faults)
      : ranks_(ranks),
        dir_(dir),
        launch_(ranks, arguments, binary(),
                {"LD_PRELOAD=" + fault_library(), "UTRAIN_FAULT=" + faults,
                 "UTRAIN_FAULT_DIR=" + dir, "UTRAIN_FAULT_STATE=" + state_.str()}) {}

  Launch& launch() { return launch_; }
  Outcome wait(double limit_seconds = 60.0) { return launch_.wait(limit_seconds); }

  std::vector<Struck> struck() const {
    std::vector<Struck> all;
    std::istringstream lines(read_bytes(state_ / "fired"));
    for (std::string line; std::getline(lines, line);) {
      Struck one;
      std::istringstream words(line);
      words >> one.rank >> one.action >> one.call;
      std::getline(words >> std::ws, one.paths);
      all.push_back(one);
    }
    return all;
  }
  // When the first fault struck, on the clock of file times.
  std::optional<std::filesystem::file_time_type> struck_at() const {
    std::error_code error;
    const auto at = std::filesystem::last_write_time(state_ / "fired", error);
    return error ? std::nullopt : std::optional(at);
  }
  // The process of a rank, as the library noted it; 0 before it did.
  pid_t pid_of(int rank) const {
    return std::atoi(read_bytes(state_ / fmt::format("pid.{}", rank)).c_str());
  }
  // Ranks whose launcher was killed work on until they notice, and may get far on a busy machine.
  // Whether they have gone in that time.
  bool are_gone_within(double seconds) const {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    for (int rank = 0; rank < ranks_;) {
      const pid_t pid = pid_of(rank);
      // Empty where nobody has asked for its end.
      if (pid == 0 || read_bytes(fmt::format("/proc/{}/cmdline", pid)).empty()) {
        ++rank;
      } else {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
    return true;
  }
  // Once the ranks are gone.
  PowerCut power_cut(uint64_t seed) const { return PowerCut(dir_, state_.str(), seed); }

 private:
  int ranks_;
  std::string dir_;
  TempDir state_;  // outlives the ranks
  Launch launch_;
};

}  // namespace utrain
