#include "app/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "app/resume.h"
#include "checkpoint/read.h"
#include "io/file.h"
#include "io/peft_adapter.h"
#include "io/safetensors.h"

namespace utrain {

namespace fs = std::filesystem;

namespace {

bool leads_nowhere(const fs::path& path) {
  std::error_code ignored;
  return fs::is_symlink(fs::symlink_status(path, ignored)) && !fs::exists(path, ignored);
}

// What is there already, dir itself or something above it, must be a directory to write to.
void check_can_be_made(const std::string& dir) {
  std::error_code error;
  fs::path above = fs::absolute(dir, error);
  while (!error && !fs::exists(above, error) && !error && above.has_relative_path()) {
    if (leads_nowhere(above)) {
      fail(ExitCode::usage, dir,
           fmt::format("{} is a link to {}, which does not exist", above.string(),
                       fs::read_symlink(above, error).string()),
           "make that directory, or name another run.dir");
    }
    above = above.parent_path();
  }
  if (error) {
    fail(ExitCode::usage, dir, fmt::format("run.dir cannot be used: {}", error.message()),
         "name another run.dir");
  }
  if (!fs::is_directory(above, error)) {
    const bool itself = above == fs::absolute(dir, error);
    fail(ExitCode::usage, dir,
         itself ? "run.dir is a file, wanted a directory"
                : fmt::format("run.dir lies under {}, which is a file", above.string()),
         "name another run.dir");
  }
  if (::access(above.c_str(), W_OK | X_OK) != 0) {
    fail(ExitCode::io, dir,
         fmt::format("{} cannot be written: {}", above.string(), std::strerror(errno)),
         "make it writable, or name another run.dir");
  }
}

[[noreturn]] void refuse_name(const std::string& path, const std::string& what) {
  fail(ExitCode::usage, path, what, "move it away, or name another run.dir");
}

// What has a name of ours must be what we make of it, or go.
void check_kinds(const std::string& dir, bool dry_run) {
  std::error_code ignored;
  const std::string checkpoints = checkpoints_folder(dir), latest = checkpoints + "/LATEST";
  for (const std::string& path : {dir + "/.lock", dir + "/metrics.jsonl", checkpoints})
    if (leads_nowhere(path)) refuse_name(path, "is a link to what does not exist");
  for (const std::string& path : {dir + "/.lock", dir + "/metrics.jsonl", latest})
    if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored))
      refuse_name(path, "is not a regular file, as a run makes it");
  if (fs::exists(checkpoints, ignored) && !fs::is_directory(checkpoints, ignored))
    refuse_name(checkpoints, "is not a directory, as a run makes it");
  for (const std::string& name : names_cleared(dry_run)) {
    const std::string path = dir + "/" + name;
    if (path != checkpoints && fs::is_symlink(path, ignored)) continue;  // the link alone goes
    if (!fs::is_directory(path, ignored) || fs::is_empty(path, ignored)) continue;
    if (::access(path.c_str(), R_OK | W_OK | X_OK) != 0)
      refuse_name(path, fmt::format("cannot be cleared: {}", std::strerror(errno)));
  }
}

bool is_locked(const std::string& dir) {
  const int lock = open((dir + "/.lock").c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (lock < 0) return false;
  // Shared: ranks that look at the same time do not see each other.
  const bool locked = flock(lock, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  close(lock);
  return locked;
}

[[noreturn]] void fail_locked(const std::string& dir) {
  fail(ExitCode::usage, dir, "is in use by another running utrain",
       "wait for it, or name another run.dir");
}

void check_not_finished(const std::string& dir, bool overwrite) {
  if (overwrite || !holds_finished_run(dir)) return;
  fail(ExitCode::usage, dir, "holds a finished run",
       "name another run.dir, or set run.overwrite = true to lose that run");
}

// Where the line of the first step after `step` begins, or the first one that is not whole.
int64_t end_of_metrics(const std::string& path, int64_t step) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.data()),
                              static_cast<size_t>(file.size()));
  size_t begin = 0;
  int64_t last = 0;
  for (size_t end; (end = text.find('\n', begin)) != text.npos; begin = end + 1) {
    try {
      const Json line = parse_json(text.substr(begin, end - begin), path);
      const int64_t of_line = JsonObjectReader(line, path).integer("step", 0, INT64_MAX);
      if (of_line > step) break;
      last = of_line;
    } catch (const Error&) {
      break;
    }
  }
  if (last < step) {
    warn(fmt::format("{}: lines of steps {} to {} are missing or damaged", path, last + 1, step));
  }
  return static_cast<int64_t>(begin);
}

// What was measured after `step` will be measured again.
void cut_metrics(const std::string& path, int64_t step) {
  if (!fs::exists(path)) return;
  std::error_code error;
  fs::resize_file(path, static_cast<uintmax_t>(end_of_metrics(path, step)), error);
  if (error) fail_io(path, "cannot cut it back to the checkpoint", error.value());
}

// A name under which nothing looks for checkpoints; what was left there before goes.
std::string set_aside(const std::string& checkpoint, const FileSign& sign) {
  const fs::path path(checkpoint);
  const fs::path aside = path.parent_path() / ("unused-" + path.filename().string());
  std::error_code error = remove_tree(aside.string(), sign);
  if (!error) fs::rename(path, aside, error);
  if (error) fail_io(checkpoint, "cannot be renamed", error.value());
  return aside.filename().string();
}

}  // namespace

std::vector<std::string> names_cleared(bool dry_run) {
  std::vector<std::string> names = {".lock", "STOP", "crash", "heartbeats", "metrics.jsonl"};
  if (!dry_run)
    names.insert(names.end(),
                 {"checkpoints", "summary.json", "input.resolved.toml", "adapter", "model"});
  return names;
}

bool holds_finished_run(const std::string& dir) {
  const std::string path = dir + "/summary.json";
  std::error_code error;
  if (!fs::exists(path, error)) return false;
  try {
    const Json summary = parse_json(read_text_file(path, 64 << 20), path);
    const Json* code = summary.is_object() ? summary.find("exit_code") : nullptr;
    return code != nullptr && code->is_integer() && code->as_int64() == 0;
  } catch (const Error& error) {  // of another program, or torn: no run has finished by it
    if (error.code() != ExitCode::bad_file) throw;
    return false;
  }
}

void check_run_directory(const std::string& dir, bool overwrite, bool dry_run) {
  check_can_be_made(dir);
  check_kinds(dir, dry_run);
  if (is_locked(dir)) fail_locked(dir);
  check_not_finished(dir, overwrite);
  if (dry_run && !list_checkpoints(checkpoints_folder(dir)).empty()) {
    fail(ExitCode::usage, dir, "holds checkpoints, and metrics that a dry run would replace",
         "name another run.dir for the dry run");
  }
}

RunLock::RunLock(const std::string& dir) : path_(dir + "/.lock") {
  struct stat held, found;
  do {  // again where the last holder removed the file between our open and our lock
    if (file_ >= 0) close(file_);
    file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) fail_io(path_, "cannot open", errno);
    if (flock(file_, LOCK_EX | LOCK_NB) == 0) continue;
    const int error = errno;
    if (error == EWOULDBLOCK) {
      close(file_);
      fail_locked(dir);
    }
    warn(fmt::format("{}: no locks here ({}), a second job in this directory would go unnoticed",
                     dir, std::strerror(error)));
    return;
  } while (stat(path_.c_str(), &found) != 0 || fstat(file_, &held) != 0 ||
           found.st_ino != held.st_ino);
}

RunLock::~RunLock() {
  unlink(path_.c_str());  // still locked: nobody else can take it for theirs
  close(file_);
}

RunDirectory::RunDirectory(const std::string& dir, bool overwrite, const RunStart& start,
                           const FileSign& sign)
    : dir_(dir) {
  check_run_directory(dir, overwrite, start.dry_run);
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) fail_io(dir, "cannot make run.dir", error.value());
  lock_.emplace(dir);
  take(overwrite, start, sign);
  const std::string metrics = dir + "/metrics.jsonl";
  metrics_ = open(metrics.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (metrics_ < 0) fail_io(metrics, "cannot open", errno);
}

void RunDirectory::take(bool overwrite, const RunStart& start, const FileSign& sign) {
  const auto remove = [&](const std::string& name) {
    const std::string path = dir_ + "/" + name;
    const std::error_code error = remove_tree(path, sign);
    if (error) fail_io(path, "cannot remove what an earlier run left", error.value());
  };
  check_not_finished(dir_, overwrite);  // a run may have finished before the lock was ours
  if (start.dry_run) return remove("metrics.jsonl");
  const std::string folder = checkpoints_folder(dir_);
  if (start.after_step > 0) {
    cut_metrics(dir_ + "/metrics.jsonl", start.after_step);
    for (const std::string& checkpoint : start.damaged) set_aside(checkpoint, sign);
    for (const std::string& checkpoint : start.unused)
      warn(fmt::format("{}: is newer than what the run goes on from, now {}", checkpoint,
                       set_aside(checkpoint, sign)));
  } else {
    if (!start.clears_checkpoints && !list_checkpoints(folder).empty()) {
      fail(ExitCode::usage, folder, "checkpoints came to be while this run was starting",
           "start it again");
    }
    remove("checkpoints");
    remove("metrics.jsonl");
  }
  for (const char* name : {"summary.json", "input.resolved.toml", "adapter", "model"}) remove(name);
}

RunDirectory::~RunDirectory() {
  if (metrics_ >= 0) close(metrics_);
}

void RunDirectory::write_line(const Json& line) {
  const std::string text = to_text(line) + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(metrics_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      fail_io(dir_ + "/metrics.jsonl", fmt::format("cannot write {} bytes", text.size()),
              n < 0 ? errno : ENOSPC);
    }
    done += static_cast<size_t>(n);
  }
}

void RunDirectory::write_metrics(const StepStats& s) {
  Json line = Json::object();
  line.set("step", s.step)
      .set("epoch", s.epoch)
      .set("loss", s.loss)
      .set("grad_norm", s.grad_norm)
      .set("lr", s.lr);
  line.set("target_tokens", s.target_tokens)
      .set("tokens", s.tokens)
      .set("step_ms", s.seconds * 1e3);
  line.set("tokens_per_second", static_cast<double>(s.tokens) / s.seconds);
  write_line(line);
}

void RunDirectory::write_metrics(int64_t step, const EvalStats& stats) {
  Json line = Json::object();
  line.set("step", step)
      .set("eval_loss", stats.loss)
      .set("eval_target_tokens", stats.target_tokens);
  write_line(line);
}

void RunDirectory::sync_metrics() {
  if (fsync(metrics_) != 0) fail_io(dir_ + "/metrics.jsonl", "syncing failed", errno);
}

void RunDirectory::write_text(const std::string& name, const std::string& text) {
  write_text_file(dir_ + "/" + name, text);
}

}  // namespace utrain
