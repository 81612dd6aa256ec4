// The file of an input, of whatever kind it is, on one rank and on several.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>

#include "config/input_text.h"
#include "core/error.h"
#include "io_files.h"
#include "launch.h"

namespace utrain {
namespace {

std::string refusal(const std::string& file, std::chrono::milliseconds patience) {
  try {
    read_input_file(file, patience);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
}

void expect_refused(const std::string& file, const std::string& words) {
  const std::string found = refusal(file, std::chrono::milliseconds(100));
  EXPECT_NE(found.find(file + ": " + words), std::string::npos) << found;
}

// A pipe, and who writes a file into it, the first bytes a while before the rest.
class Pipe {
 public:
  explicit Pipe(const std::string& file)
      : path_(make(file)),
        writer_(
            kAlone,
            {"-c", "{ head -c 100 \"$0\"; sleep 0.05; tail -c +101 \"$0\"; } > \"$0.pipe\"", file},
            "/bin/bash") {}
  ~Pipe() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  static std::string make(const std::string& file) {
    EXPECT_EQ(::mkfifo((file + ".pipe").c_str(), 0600), 0);
    return file + ".pipe";
  }
  std::string path_;
  Launch writer_;
};

TEST(InputText, FilesThatCannotBeInput) {
  const TempDir dir;
  expect_refused(dir / "none.toml", "does not exist; ");
  expect_refused(dir.str(), "is a directory; ");
  write_bytes(dir / "full.toml", std::string(kMaxInputBytes, '#'));
  EXPECT_EQ(read_input_file(dir / "full.toml").size(), kMaxInputBytes);
  write_bytes(dir / "over.toml", std::string(kMaxInputBytes + 1, '#'));
  expect_refused(dir / "over.toml", "is larger than 64 KiB; ");
  expect_refused("/dev/zero", "is larger than 64 KiB; ");
  EXPECT_EQ(read_input_file("/dev/null"), "");
  ASSERT_EQ(::mkfifo((dir / "silent").c_str(), 0600), 0);
  expect_refused(dir / "silent", "nothing comes out of it for 0.1 s; ");
}

TEST(InputText, ASignWhileItWaits) {
  const TempDir dir;
  ASSERT_EQ(::mkfifo((dir / "silent").c_str(), 0600), 0);
  int n_signs = 0;
  EXPECT_THROW(read_input_file(dir / "silent", std::chrono::milliseconds(1100), [&] { ++n_signs; }),
               Error);
  EXPECT_EQ(n_signs, 2);
}

// Root reads every file.
[[noreturn]] void read_as_nobody(const std::string& file) {
  if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(1);
  std::fprintf(stderr, "%s\n", refusal(file, std::chrono::milliseconds(100)).c_str());
  ::_exit(0);
}

TEST(InputText, UnreadableFile) {
  const TempDir dir;
  std::filesystem::permissions(dir.str(), std::filesystem::perms{0755});
  write_bytes(dir / "closed.toml", "");
  std::filesystem::permissions(dir / "closed.toml", std::filesystem::perms::none);
  EXPECT_EXIT(read_as_nobody(dir / "closed.toml"), testing::ExitedWithCode(0),
              "closed.toml: cannot be opened .Permission denied.; make it readable");
}

TEST(InputText, OfAPipeToItsEnd) {
  const TempDir dir;
  const std::string text(20000, 'x');
  write_bytes(dir / "input.toml", text);
  EXPECT_EQ(read_input_file(Pipe(dir / "input.toml").path()), text);
}

// One rank reads for all: a second reader would find nothing.
TEST(InputText, OfAPipeForEveryRank) {
  const TempDir dir;
  write_bytes(dir / "input.toml", golden_input("llama", dir / "run"));
  for (const int ranks : {kAlone, 3}) {
    for (const char* command : {"--print-config", "--check", "--plan"}) {
      const Pipe pipe(dir / "input.toml");
      const Outcome outcome = launch(ranks, {pipe.path(), command});
      EXPECT_EQ(outcome.exit_code, 0) << command << outcome.text();
    }
  }
}

TEST(InputText, OfTheShellsProcessSubstitution) {
  const TempDir dir;
  write_bytes(dir / "input.toml", golden_input("llama", dir / "run"));
  const std::string command =
      fmt::format("'{}' <(sleep 0.1; cat '{}') --check", binary(), dir / "input.toml");
  const Outcome outcome = Launch(kAlone, {"-c", command}, "/bin/bash").wait();
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_NE(outcome.out.find("nothing found wrong"), std::string::npos) << outcome.text();
}

}  // namespace
}  // namespace utrain
