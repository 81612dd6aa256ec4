// Places that a run or a dump does not write to, end to end, as refusal_launch.h expects it.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "refusal_launch.h"

namespace utrain {
namespace {

TEST(RunDirectoryRefused, AFile) {
  Sandbox sandbox;
  sandbox.set("run.dir", sandbox.quoted("tokens.h5"));
  expect_refused(sandbox, 2, "run.dir is a file");
}

TEST(RunDirectoryRefused, UnderAFile) {
  Sandbox sandbox;
  sandbox.set("run.dir", sandbox.quoted("tokens.h5/runs/1"));
  sandbox.flags = {"--check"};
  expect_refused(sandbox, 2, "which is a file");
}

TEST(RunDirectoryRefused, ANameTooLong) {
  Sandbox sandbox;
  sandbox.set("run.dir", sandbox.quoted(std::string(300, 'x')));
  expect_refused(sandbox, 2, "name another run.dir");
}

// What lies under a name of ours is found with everything else of the input, before the start table.
TEST(RunDirectoryRefused, ThingsOfAnotherKind) {
  struct Fault {
    const char* name;
    std::string words;
    std::function<void(const std::string& path)> make;
  };
  const auto link = [](const std::string& path) { fs::create_symlink("nowhere", path); };
  const auto directory = [](const std::string& path) { fs::create_directory(path); };
  const auto file = [](const std::string& path) { write_bytes(path, ""); };
  const auto pipe = [](const std::string& path) { ::mkfifo(path.c_str(), 0600); };
  const std::vector<Fault> faults = {
      {"run", "run is a link to nowhere, which does not exist; make ", link},
      {"run/.lock", "run/.lock: is not a regular file", directory},
      {"run/.lock", "run/.lock: is a link to what does not exist", link},
      {"run/metrics.jsonl", "run/metrics.jsonl: is not a regular file", directory},
      {"run/metrics.jsonl", "run/metrics.jsonl: is not a regular file", pipe},
      {"run/metrics.jsonl", "run/metrics.jsonl: is a link to what does not exist", link},
      {"run/checkpoints/LATEST", "checkpoints/LATEST: is not a regular file", directory},
      {"run/checkpoints/LATEST", "checkpoints/LATEST: is not a regular file", pipe},
      {"run/checkpoints", "run/checkpoints: is not a directory", file},
      {"run/checkpoints", "run/checkpoints: is a link to what does not exist", link},
  };
  for (const Fault& fault : faults) {
    for (const bool checks : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", fault.words, checks));
      Sandbox sandbox;
      fs::create_directories(fs::path(sandbox.dir / fault.name).parent_path());
      fault.make(sandbox.dir / fault.name);
      if (checks) sandbox.flags = {"--check"};
      expect_refused(sandbox, 2, fault.words);
    }
  }
}

// Under the names that a run clears or writes: what it is to read would go.
TEST(RunDirectoryRefused, WhereItsInputsWouldBeLost) {
  struct Fault {
    const char *key, *from, *to;  // what is named lies there
    std::string words;
  };
  const std::vector<Fault> faults = {
      {"model.path", "model", "run/model", "run/model; name another run.dir, or move "},
      {"lora.init_from", "adapter", "run/adapter",
       "run/adapter; to train on from it, name another run.dir"},
      {"data.train", "tokens.h5", "run/checkpoints/tokens.h5", "run/checkpoints; "},
      {"data.eval", "tokens.h5", "run/summary.json", "run/summary.json; "},
  };
  for (const Fault& fault : faults) {
    for (const bool checks : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", fault.key, checks));
      Sandbox sandbox;
      fs::create_directories(fs::path(sandbox.dir / fault.to).parent_path());
      fs::copy(sandbox.dir / fault.from, sandbox.dir / fault.to, fs::copy_options::recursive);
      sandbox.set(fault.key, sandbox.quoted(fault.to));
      sandbox.set("run.overwrite", "true");
      if (checks) sandbox.flags = {"--check"};
      expect_refused(
          sandbox, 2,
          fmt::format("error: {}: {} would be lost, for the run clears and writes {}/{}", fault.key,
                      sandbox.dir / fault.to, sandbox.dir.str(), fault.words));
    }
  }
}

TEST(RunDirectoryRefused, WhereItsInputFileWouldBeLost) {
  Sandbox sandbox;
  sandbox.arguments();
  fs::create_directory(sandbox.dir / "run");
  fs::copy(sandbox.dir / "input.toml", sandbox.dir / "run/metrics.jsonl");
  const std::string before = read_bytes(sandbox.dir / "input.toml");
  sandbox.with_input = false;
  sandbox.flags = {sandbox.dir / "run/metrics.jsonl"};
  expect_refused(sandbox, 2, "error: the input file: ");
  EXPECT_EQ(read_bytes(sandbox.flags[0]), before);
}

// A link in the middle of the path, to what is still to be made.
TEST(RunDirectoryRefused, UnderALinkThatLeadsNowhere) {
  Sandbox sandbox;
  fs::create_symlink("nowhere", sandbox.dir / "runs");
  sandbox.set("run.dir", sandbox.quoted("runs/1"));
  expect_refused(sandbox, 2, "runs is a link to nowhere");
}

TEST(RunDirectoryRefused, WhereTheSystemLetsNobodyMakeIt) {
  Sandbox sandbox;
  sandbox.set("run.dir", "\"/proc/utrain/run\"");
  expect_refused(sandbox, 74, "/proc/utrain/run");
}

TEST(RunDirectoryRefused, AFinishedRun) {
  Sandbox sandbox;
  fs::create_directory(sandbox.dir / "run");
  write_bytes(sandbox.dir / "run/summary.json", "{\"exit_code\": 0}");
  expect_refused(sandbox, 2, "run.overwrite");
}

TEST(RunDirectoryRefused, InUse) {
  Sandbox sandbox;
  fs::create_directory(sandbox.dir / "run");
  const int lock = ::open((sandbox.dir / "run/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  expect_refused(sandbox, 2, "in use");
  ::close(lock);
}

TEST(DumpRefused, IntoAMissingDirectory) {
  Sandbox sandbox;
  sandbox.flags = {"--dump", sandbox.dir / "none/out.safetensors"};
  expect_refused(sandbox, 2, "none/out.safetensors");
}

TEST(DumpRefused, InThePlaceOfADirectory) {
  Sandbox sandbox;
  sandbox.flags = {"--dump", sandbox.dir / "adapter"};
  expect_refused(sandbox, 74, "not a regular file");
}

TEST(DumpRefused, InThePlaceOfAnInput) {
  const std::vector<std::pair<const char*, std::string>> places = {
      {"input.toml", "would replace the input file"},
      {"tokens.h5", "would replace data.train"},
      {"eval.h5", "would replace data.eval"},
      {"model/model.safetensors", "lies in model.path"},
      {"model/dump.safetensors", "lies in model.path"},
      {"adapter/adapter_model.safetensors", "lies in lora.init_from"},
  };
  Sandbox sandbox;
  sandbox.go_on_from_adapter();
  fs::copy(sandbox.dir / "tokens.h5", sandbox.dir / "eval.h5");
  sandbox.set("data.eval", sandbox.quoted("eval.h5"));
  sandbox.arguments();
  for (const auto& [name, words] : places) {
    SCOPED_TRACE(name);
    const std::string before = read_bytes(sandbox.dir / name);
    sandbox.flags = {"--dump", sandbox.dir / name};
    expect_refused(sandbox, 2, words);
    EXPECT_TRUE(read_bytes(sandbox.dir / name) == before);
  }
}

TEST(Dump, TakesThePlaceOfAnOlderOne) {
  Sandbox sandbox;
  write_bytes(sandbox.dir / "out.safetensors", "older");
  sandbox.flags = {"--dump", sandbox.dir / "out.safetensors"};
  const Outcome outcome = launch(kAlone, sandbox.arguments());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
  EXPECT_TRUE(SafetensorsFile(sandbox.dir / "out.safetensors").find("loss") != nullptr);
}

}  // namespace
}  // namespace utrain
