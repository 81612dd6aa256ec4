// Files for the tests of src/io and src/model: a directory of this process that goes with it,
// safetensors made byte by byte (also wrong ones), and the check that a call is refused with the
// right code and place.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"

namespace utrain {

class TempDir {
 public:
  TempDir() {
    static int n = 0;
    path_ =
        std::filesystem::temp_directory_path() / fmt::format("utrain-io-{}-{}", ::getpid(), n++);
    std::filesystem::create_directories(path_);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string str() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  size_t n_files() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_bytes(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

inline std::string little_endian(uint64_t n) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(n >> (8 * i));
  return bytes;
}

// A file from its header text and the number of data bytes (all 'x').
inline std::string safetensors_bytes(const std::string& header, size_t n_data) {
  return little_endian(header.size()) + header + std::string(n_data, 'x');
}

// The call fails with this code, in one line, with all of `words` in it.
template <class Call>
void expect_refused(Call&& call, ExitCode code, const std::vector<std::string>& words) {
  try {
    call();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.code(), code) << text;
    for (const std::string& word : words) {
      EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in: " << text;
    }
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_NE(text.find("; "), std::string::npos) << text;
    EXPECT_LT(text.size(), 2000u);
    return;
  }
  ADD_FAILURE() << "not refused; expected a message about " << (words.empty() ? "?" : words[0]);
}

}  // namespace utrain
