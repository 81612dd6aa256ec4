// Starts ./utrain as a user does, alone or under mpirun, and takes its output, exit code and time.
// Whatever still runs when a Launch goes is ended, and so is everything when the test itself dies.
// Only a command line with --run.backend=cuda sees GPUs: all others run alike on every machine.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "io/json.h"
#include "io_files.h"
#include "places.h"

namespace utrain {

struct Outcome {
  int exit_code = -1;  // 128 + n where signal n ended it
  std::string out, err;
  double seconds = 0.0;
  int64_t peak_bytes = 0;  // resident, of the largest process
  bool timed_out = false;

  std::string text() const {
    return fmt::format("exit code {}{}\n{}{}", exit_code, timed_out ? " (timed out)" : "", out,
                       err);
  }
  // The lines that utrain itself wrote as errors.
  std::vector<std::string> error_lines() const {
    std::vector<std::string> lines;
    std::istringstream in(err);
    for (std::string line; std::getline(in, line);)
      if (line.starts_with("utrain: error: ")) lines.push_back(line);
    return lines;
  }
};

inline constexpr int kAlone = 0;  // ranks of a process without mpirun

class Launch {
 public:
  // environment: "NAME=value", of the ranks alone, not of mpirun.
  Launch(int ranks, const std::vector<std::string>& arguments,
         const std::string& program = binary(), const std::vector<std::string>& environment = {})
      : start_(std::chrono::steady_clock::now()) {
    std::vector<std::string> words;
    if (ranks != kAlone) {
      words = {"mpirun", "--oversubscribe", "--bind-to", "none"};
      // Ranks are killed at once. mpirun does not always survive that where one is in MPI_Finalize.
      if (program == binary())
        words.insert(words.end(), {"--mca", "odls_base_sigkill_timeout", "0"});
      if (::geteuid() == 0) words.push_back("--allow-run-as-root");
      for (const std::string& variable : environment) words.insert(words.end(), {"-x", variable});
      words.insert(words.end(), {"-np", std::to_string(ranks)});
    }
    words.push_back(program);
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);

    // More threads than cores would only wait for each other; leaks of MPI itself are not ours.
    ::setenv("OMP_NUM_THREADS", "1", 1);
    ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    const bool wants_gpus = std::ranges::count(arguments, "--run.backend=cuda") > 0;
    const std::string out = files_ / "out", err = files_ / "err";
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) ::_exit(126);
      if (!wants_gpus) ::setenv("CUDA_VISIBLE_DEVICES", "", 1);
      ::dup2(::open("/dev/null", O_RDONLY), 0);
      ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
      ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
      ::execvp(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Launch() { end(); }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  bool is_running() {
    if (pid_ > 0 && ::wait4(pid_, &status_, WNOHANG, &usage_) == pid_) pid_ = -1;
    return pid_ > 0;
  }
  pid_t pid() const { return pid_; }                              // < 0 once it ended
  std::string out() const { return read_bytes(files_ / "out"); }  // so far
  // What a lost node or a batch system does to the launcher.
  void kill_launcher() {
    if (is_running()) ::kill(pid_, SIGKILL);
  }

  // The process of a rank of mpirun; waits until it is there. 0: it never was, or is gone.
  pid_t process_of(int rank) {
    const std::string wanted = fmt::format("OMPI_COMM_WORLD_RANK={}", rank);
    for (; is_running() && seconds() < 30.0;
         std::this_thread::sleep_for(std::chrono::milliseconds(2))) {
      std::ifstream children(fmt::format("/proc/{0}/task/{0}/children", pid_));
      for (pid_t child; children >> child;) {
        const std::string command = read_bytes(fmt::format("/proc/{}/cmdline", child));
        const std::string variables = read_bytes(fmt::format("/proc/{}/environ", child));
        if (command.starts_with("mpirun")) continue;  // not there yet
        if (('\0' + variables).find('\0' + wanted + '\0') != std::string::npos) return child;
      }
    }
    return 0;
  }
  void send(int rank, int signal) {
    const pid_t process = process_of(rank);
    ASSERT_GT(process, 0) << "no rank " << rank;
    ::kill(process, signal);
  }

  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  Outcome wait(double limit_seconds = 60.0) {
    Outcome outcome;
    while (is_running() && !outcome.timed_out) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      outcome.timed_out = seconds() > limit_seconds;
    }
    outcome.seconds = seconds();
    end();
    outcome.peak_bytes = int64_t{usage_.ru_maxrss} * 1024;  // mpirun's ranks are counted in
    outcome.exit_code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    outcome.out = read_bytes(files_ / "out");
    outcome.err = read_bytes(files_ / "err");
    EXPECT_FALSE(outcome.timed_out) << outcome.text();
    return outcome;
  }

 private:
  // mpirun ends its ranks on SIGTERM; SIGKILL is for one that does not listen.
  void end() {
    for (int i = 0; i < 1000 && is_running(); ++i) {
      ::kill(pid_, i < 500 ? SIGTERM : SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  TempDir files_;
  std::chrono::steady_clock::time_point start_;
  pid_t pid_ = -1;
  int status_ = 0;
  rusage usage_ = {};
};

inline Outcome launch(int ranks, const std::vector<std::string>& arguments,
                      double limit_seconds = 60.0) {
  return Launch(ranks, arguments).wait(limit_seconds);
}

// The objects of metrics.jsonl, in order. A last line without its newline is not there yet.
inline std::vector<Json> read_metrics(const std::string& path) {
  std::vector<Json> lines;
  const std::string text = read_bytes(path);
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != text.npos; begin = end + 1)
    lines.push_back(parse_json(text.substr(begin, end - begin), path));
  return lines;
}

inline Json read_json(const std::string& path) {
  return parse_json(read_bytes(path), path);
}

// One value of every line that has it; null = NaN.
inline std::vector<double> curve(const std::vector<Json>& lines, std::string_view key) {
  std::vector<double> values;
  for (const Json& line : lines) {
    if (const Json* value = line.find(key))
      values.push_back(value->is_null() ? std::numeric_limits<double>::quiet_NaN()
                                        : value->as_double());
  }
  return values;
}

// Everything in full, but times.
inline std::string text_without_times(const std::vector<Json>& lines) {
  std::string text;
  for (const Json& line : lines) {
    for (const auto& [key, value] : line.as_object())
      if (key != "step_ms" && key != "tokens_per_second") text += key + to_text(value) + " ";
    text += "\n";
  }
  return text;
}

// The input of a golden case: its adapter, its documents in file order, all of them in every step.
inline std::string golden_input(const std::string& name, const std::string& run_dir) {
  const std::string at = golden_path(name);
  const Json golden = read_json(at + "/case.json");
  const Json &train = *golden.find("train"), &data = *golden.find("data");
  const auto text = [&](const char* key) { return to_text(*train.find(key)); };
  std::string input;
  input += fmt::format("[model]\npath = \"{}/model\"\ndtype = \"float32\"\n", at);
  const bool full = train.find("method") != nullptr;
  if (!full) input += fmt::format("[lora]\ninit_from = \"{}/adapter_init\"\n", at);
  input += fmt::format("[data]\ntrain = \"{}/tokens.h5\"\nseq_len = 64\nshuffle = false\n", at);
  input += fmt::format("[train]\nmax_steps = {}\nglobal_batch_size = {}\n", text("steps"),
                       to_text(*data.find("documents")));
  for (const char* key : {"lr", "betas", "eps", "weight_decay", "max_grad_norm", "warmup_steps"})
    input += fmt::format("{} = {}\n", key, text(key));
  if (full) input += fmt::format("method = {}\n", text("method"));
  input += fmt::format("[run]\ndir = \"{}\"\n", run_dir);
  return input;
}

// The arguments that give a golden case more layers, of random weights, and a new adapter. Writes
// their config.json into dir.
inline std::vector<std::string> more_layers(const std::string& name, const std::string& dir,
                                            int n_layers) {
  std::string config = read_bytes(golden_path(name) + "/model/config.json");
  const std::string two = "\"num_hidden_layers\": 2";
  config.replace(config.find(two), two.size(), fmt::format("\"num_hidden_layers\": {}", n_layers));
  std::filesystem::create_directories(dir);
  write_bytes(dir + "/config.json", config);
  return {"--model.path=" + dir, "--model.init=random", "--lora.init_from="};
}

}  // namespace utrain
