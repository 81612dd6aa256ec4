// What a run reads stays where it is: by its own name, under a directory, and by links in either
// direction. The refusals end to end: refused_places_test.
#include "app/input_places.h"

#include "app/run_directory.h"
#include "io_files.h"

namespace utrain {
namespace {

namespace fs = std::filesystem;

class InputPlacesTest : public testing::Test {
 protected:
  InputPlacesTest() {
    for (const char* name : {"run/adapter", "run/checkpoints", "elsewhere/model", "hub/blobs"})
      fs::create_directories(dir_ / name);
    for (const char* name : {"input.toml", "elsewhere/train.h5", "elsewhere/model/config.json"})
      write_bytes(dir_ / name, "x");
    config_.run.dir = dir_ / "run";
    config_.model.path = dir_ / "elsewhere/model";
    config_.data.train = dir_ / "elsewhere/train.h5";
  }
  void link(const std::string& name, const std::string& target) {
    fs::create_directories(fs::path(dir_ / name).parent_path());
    fs::create_symlink(target, dir_ / name);
  }
  std::vector<InputPlace> inputs() const { return input_places(config_, dir_ / "input.toml"); }
  void check_run(bool dry_run = false) const {
    check_run_spares(inputs(), config_.run.dir, dry_run);
  }
  void expect_lost(const std::string& key, const std::string& name) const {
    expect_refused([&] { check_run(); }, ExitCode::usage, {key + ": ", dir_ / ("run/" + name)});
  }
  void expect_dump_refused(const std::string& name, const std::string& words) const {
    expect_refused([&] { check_dump_spares(inputs(), dir_ / name); }, ExitCode::usage, {words});
  }

  TempDir dir_;
  Config config_;
};

TEST_F(InputPlacesTest, ElsewhereAndBesideWhatIsCleared) {
  check_run();
  fs::copy(config_.data.train, dir_ / "run/train.h5");
  fs::copy(config_.model.path, dir_ / "run/base");
  config_.data.eval = dir_ / "run/train.h5";
  config_.model.path = dir_ / "run/base";
  check_run();
  config_.model.path = dir_ / "run";  // itself: no file of a model has a name of ours
  check_run();
}

TEST_F(InputPlacesTest, EveryNameThatIsCleared) {
  for (const std::string& name : names_cleared(false)) {
    config_.data.eval = dir_ / ("run/" + name);
    expect_lost("data.eval", name);
    config_.data.eval = dir_ / ("run/./" + name + "/a/../b");
    expect_lost("data.eval", name);
  }
}

TEST_F(InputPlacesTest, ADryRunClearsMetricsAlone) {
  config_.lora.init_from = dir_ / "run/adapter";
  expect_lost("lora.init_from", "adapter");
  check_run(true);
  config_.data.eval = dir_ / "run/metrics.jsonl";
  expect_refused([&] { check_run(true); }, ExitCode::usage, {"data.eval"});
}

TEST_F(InputPlacesTest, LinksIntoTheRunDirectory) {
  link("mine", "run");
  config_.lora.init_from = dir_ / "mine/adapter";
  expect_lost("lora.init_from", "adapter");
  config_.lora.init_from = "";
  link("data.h5", "mine/checkpoints/data.h5");
  config_.data.eval = dir_ / "data.h5";
  expect_lost("data.eval", "checkpoints");
  config_.data.eval = "";
  // A model whose weights alone lie there.
  link("elsewhere/model/model.safetensors", dir_ / "run/model/model.safetensors");
  expect_lost("model.path", "model");
}

// The link alone goes: what it leads to stays, but is not found by it any more.
TEST_F(InputPlacesTest, LinksOutOfTheRunDirectory) {
  link("run/model", dir_ / "elsewhere/model");
  check_run();
  config_.model.path = dir_ / "run/model";
  expect_lost("model.path", "model");
  config_.model.path = dir_ / "elsewhere/model";
  fs::remove(dir_ / "run/checkpoints");
  link("run/checkpoints", dir_ / "elsewhere");  // which a run writes to where it leads
  expect_lost("model.path", "checkpoints");
}

TEST_F(InputPlacesTest, LinksInACircleEnd) {
  link("a", "b");
  link("b", "a");
  config_.data.eval = dir_ / "a";
  check_run();
}

TEST_F(InputPlacesTest, RelativeToTheWorkingDirectory) {
  const fs::path before = fs::current_path();
  fs::current_path(dir_.str());
  config_.run.dir = ".";
  config_.model.path = "model";
  expect_refused([&] { check_run(); }, ExitCode::usage, {"model.path: model would be lost"});
  expect_refused([&] { check_dump_spares(inputs(), "input.toml"); }, ExitCode::usage,
                 {"the input file"});
  fs::current_path(before);
}

TEST_F(InputPlacesTest, ADumpReplacesANameAndNotWhatItLinksTo) {
  check_dump_spares(inputs(), dir_ / "dump.safetensors");
  expect_dump_refused("input.toml", "would replace the input file");
  expect_dump_refused("elsewhere/train.h5", "would replace data.train");
  expect_dump_refused("elsewhere/model/new.safetensors", "lies in model.path");
  link("also.toml", "input.toml");
  check_dump_spares(inputs(), dir_ / "also.toml");
  link("also", "elsewhere");
  expect_dump_refused("also/train.h5", "would replace data.train");
  link("elsewhere/model/model.safetensors", dir_ / "hub/blobs/0123");
  expect_dump_refused("hub/blobs/0123", "would replace model.path");
  check_dump_spares(inputs(), dir_ / "hub/blobs/4567");
}

// By a user to whom what another left there does not belong.
void check_as_nobody(const std::string& dir) {
  if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(1);
  try {
    check_run_directory(dir, false, false);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    ::_exit(static_cast<int>(error.code()));
  }
  ::_exit(0);
}

TEST_F(InputPlacesTest, WhatCannotBeClearedIsFoundBefore) {
  fs::permissions(config_.run.dir, fs::perms::all);
  for (const char* name : {"adapter", "model", "checkpoints"}) {
    const std::string path = dir_ / (std::string("run/") + name);
    fs::create_directories(path);
    write_bytes(path + "/file", "x");
    fs::permissions(path, fs::perms{0555});
    EXPECT_EXIT(check_as_nobody(config_.run.dir), testing::ExitedWithCode(2),
                std::string(name) + ": cannot be cleared: Permission denied; move it away");
    const std::string aside = dir_ / (std::string("aside-") + name);
    fs::rename(path, aside);
    fs::create_symlink(aside, path);  // the link alone goes, but the checkpoints go through it
    EXPECT_EXIT(check_as_nobody(config_.run.dir),
                testing::ExitedWithCode(name == std::string("checkpoints") ? 2 : 0), "");
    fs::permissions(path, fs::perms::all);
    EXPECT_EXIT(check_as_nobody(config_.run.dir), testing::ExitedWithCode(0), "");
  }
}

}  // namespace
}  // namespace utrain
