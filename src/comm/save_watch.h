// A checkpoint that a thread writes beside the steps: which file it is at, and for how long it has
// not moved. The thread that writes tells; the thread of the watchdog looks.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

namespace utrain {

class SaveWatch {
 public:
  void set_limit(double seconds);  // without a sign

  // As long as it lives, the calling thread writes a checkpoint.
  class Writing {
   public:
    Writing(SaveWatch& watch, int64_t step) : watch_(watch) { watch_.begin(step); }
    ~Writing() { watch_.end(); }
    Writing(const Writing&) = delete;
    Writing& operator=(const Writing&) = delete;
    void at(const std::string& file) const { watch_.at(file); }  // where it is: a sign

   private:
    SaveWatch& watch_;
  };

  struct View {
    int64_t step = 0;
    std::string file;
    double limit = 0.0, silent = 0.0;  // s

    bool hangs() const { return silent >= limit; }
  };
  // From the watchdog alone, which saw `elapsed` s go by since it last looked. Empty: nothing is
  // being written.
  std::optional<View> look(double elapsed);

 private:
  void begin(int64_t step);
  void at(const std::string& file);
  void end();

  std::mutex mutex_;
  bool is_under_way_ = false;
  int64_t n_signs_ = 0, n_seen_ = 0;
  View view_;
};

// One line, without prefix. place: "HOST (GPU 0, NAME)"; crash_dir "" = no files.
std::string save_hang_text(const SaveWatch::View& view, int rank, const std::string& place,
                           const std::string& crash_dir);

}  // namespace utrain
