// What a rank does when it gives up: everything at the same time, each on a thread that nobody
// waits for longer than a bound, since the file system, the terminal or the GPU may be what hangs.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace utrain {

// Runs all, and returns once they are done, or after so many seconds without those that are not.
void run_bounded(const std::vector<std::function<void()>>& tasks, double seconds);

void write_error_line(const std::string& text);  // to file descriptor 2, in one piece

enum class Claim { mine, taken, unknown };
// Of those who ask for the same path, one gets it: the file is made, with the text in it.
Claim claim_file(const std::string& path, const std::string& text);
// As claim_file(), of the processes on this node that a launcher started together: it is held until
// the process ends. unknown: no launcher names them.
Claim claim_on_node(const std::string& what);
void write_crash_file(const std::string& path, const std::string& text);

}  // namespace utrain
