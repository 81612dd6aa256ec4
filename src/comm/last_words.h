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
// One line on all nodes: from who makes the file, which a file system that stands still does not
// hold back. Without files a node knows itself alone: those go first that have found more than ranks
// that wait (is_weak), and of them the lower node. node: -1 where there is but one.
void say_once(const std::string& text, const std::string& crash_dir, int node, bool is_weak);
void write_crash_file(const std::string& path, const std::string& text);

}  // namespace utrain
