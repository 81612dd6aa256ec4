// What goes wrong, as text: "rank=2 call=rename path=step- nth=1 do=kill". Several faults are
// separated by ";". Read by the library in the ranks (fault_library.cpp), written by the tests.
//   rank  of the job; left out: every rank
//   call  write fsync rename mkdir create open unlink truncate close: files of the run directory;
//         file: any of these but open and close; MPI_Isend and others (mpi_calls.cpp); mpi: any;
//         cblas_sgemm;
//         time: a moment of its own, nth milliseconds after the start of the rank
//   path  a part of the file's path from the run directory on, "/checkpoints/LATEST" (of a rename:
//         of either path)
//   nth   the nth such call of that rank; "3+": the third and all later ones
//   do    kill stop segv abort sleep:SECONDS exit:CODE signal:NUMBER   the rank, before the call
//         killall    every rank at once, as a node that goes
//         powercut   killall; what was not synced is lost by lose_unsynced (power_cut.h)
//         enospc eio edquot   the call fails; of a short write, half is there
//         note       nothing, it is told as any fault that strikes
//         flip halve skip     a bit of what is written differs; half of it is missing; the call is
//                             not made; all report success
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace utrain {

struct Fault {
  int rank = -1;
  std::string call, path;
  int64_t nth = 1;
  bool and_later = false;
  std::string action, value;  // "sleep", "30"

  bool is_for(int other_rank) const { return rank < 0 || rank == other_rank; }
  bool is_of(const std::string& name, const std::string& of_path) const {
    const bool is_mpi = name.starts_with("MPI_");
    const bool changes =
        !is_mpi && name != "cblas_sgemm" && name != "open" && name != "close" && name != "time";
    return (call == name || (call == "mpi" && is_mpi) || (call == "file" && changes)) &&
           of_path.find(path) != std::string::npos;
  }
};

inline std::vector<Fault> parse_faults(const std::string& text) {
  std::vector<Fault> faults;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ';');) {
    Fault fault;
    std::istringstream words(part);
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      const std::string key = word.substr(0, equals), value = word.substr(equals + 1);
      if (key == "rank") {
        fault.rank = std::stoi(value);
      } else if (key == "call") {
        fault.call = value;
      } else if (key == "path") {
        fault.path = value;
      } else if (key == "nth") {
        fault.nth = std::stoll(value);
        fault.and_later = value.ends_with("+");
      } else if (key == "do") {
        const size_t colon = value.find(':');
        fault.action = value.substr(0, colon);
        if (colon != value.npos) fault.value = value.substr(colon + 1);
      } else {
        throw std::runtime_error("UTRAIN_FAULT: unknown word " + word);
      }
    }
    if (!fault.call.empty()) faults.push_back(fault);
  }
  return faults;
}

}  // namespace utrain
