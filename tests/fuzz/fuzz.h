// What the fuzz targets share. A target (<name>_fuzz.cpp) is one function that libFuzzer calls with
// bytes: what it reads is either sound in every respect that the callers rely on, or refused as a
// user is. tests/fuzz_corpus_test.cpp calls the same functions with the corpus and mutations of it.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace utrain::fuzz {

// Always on, and ends the process: libFuzzer keeps the input.
inline void expect(bool holds, std::string_view what) {
  if (holds) return;
  fmt::print(stderr, "fuzz: does not hold: {}\n", what);
  std::abort();
}

// Lines fit for a terminal and a log: "WHERE: WHAT; WHAT TO DO", nothing that moves a cursor.
inline void expect_message(std::string_view text) {
  expect(text.size() < 64 * 1024, "the message is short");
  while (true) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    expect(line.find(": ") != line.npos && line.find("; ") != line.npos, line);
    expect(std::none_of(line.begin(), line.end(),
                        [](unsigned char c) { return c < 0x20 || c == 0x7f; }),
           "no control character in the message");
    for (size_t at = 0; (at = line.find('\xC2', at)) != line.npos; ++at)
      expect(at + 1 < line.size() && static_cast<unsigned char>(line[at + 1]) >= 0xA0,
             "no C1 control character in the message");
    if (end == text.size()) return;
    text.remove_prefix(end + 1);
  }
}

// True where the call comes back; a refusal must have one of these codes.
template <class Call>
bool accepts(const std::vector<ExitCode>& codes, Call&& call) {
  try {
    call();
    return true;
  } catch (const Error& error) {
    expect(std::find(codes.begin(), codes.end(), error.code()) != codes.end(), error.what());
    expect_message(error.what());
    return false;
  }
}

// A directory in memory, for parsers that open their files themselves.
class MemoryDir {
 public:
  MemoryDir() {
    static int n = 0;
    path_ = fmt::format("/dev/shm/utrain-fuzz-{}-{}", ::getpid(), n++);
    std::filesystem::create_directory(path_);
  }
  ~MemoryDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  MemoryDir(const MemoryDir&) = delete;
  MemoryDir& operator=(const MemoryDir&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  void write(const std::string& name, std::string_view bytes) const {
    const int fd = ::open((*this / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    expect(fd >= 0 && ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()),
           "/dev/shm can be written");
    ::close(fd);
  }

 private:
  std::string path_;
};

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace utrain::fuzz
