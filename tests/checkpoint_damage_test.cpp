// Nothing damaged is ever taken: bit flips, truncation, files that are missing, swapped, replaced or
// links. Each is found by opening, verifying and reading; and much by reading alone, without the
// hashes.
#include <gtest/gtest.h>

#include <functional>

#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint_cases.h"

namespace utrain {
namespace {

namespace fs = std::filesystem;

class Damage : public ::testing::Test {
 protected:
  Damage() {
    SaveOptions options;
    options.eval_loss = 2.5;
    path = save(dir / "checkpoints", 100, layout, flat, options);
    for (const auto& entry : fs::recursive_directory_iterator(path))
      if (entry.is_regular_file()) {
        const std::string name = fs::path(entry.path()).lexically_relative(path).string();
        whole[name] = read_bytes(entry.path().string());
      }
  }

  std::string at(const std::string& name) const { return path + "/" + name; }
  void restore(const std::string& name) const {
    fs::remove(at(name));
    write_bytes(at(name), whole.at(name));
  }
  // One line that names the checkpoint.
  void expect_found(const std::string& what) const {
    SCOPED_TRACE(what);
    expect_refused([&] { load(path, layout); }, ExitCode::no_checkpoint, {"step-00000100"});
  }
  // Makes manifest and COMMITTED those of the files as they are, so that only what is in them can
  // tell.
  void commit_again(const std::function<void(std::string&)>& change = {}) const {
    Manifest manifest = parse_manifest(read_bytes(at("manifest.json")), "manifest");
    for (FileFacts& file : manifest.files)
      file = read_facts(path, file.name, ExitCode::no_checkpoint);
    std::string text = to_text(manifest);
    if (change) change(text);
    write_bytes(at("manifest.json"), text);
    write_bytes(at("COMMITTED"), xxh3_of(text) + "\n");
  }

  TempDir dir;
  TrainableLayout layout = small_layout();
  FlatState flat{layout, 1};
  std::string path;
  std::map<std::string, std::string> whole;  // bytes by name
};

TEST_F(Damage, EveryFlippedBitIsFound) {
  std::mt19937_64 random(11);
  std::vector<std::string> names;
  for (const auto& [name, bytes] : whole) names.push_back(name);
  ASSERT_EQ(names.size(), 9u);
  for (size_t i = 0; i < 300; ++i) {
    const std::string& name = names[i % names.size()];
    std::string bytes = whole[name];
    const size_t bit = random() % (8 * bytes.size());
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    write_bytes(at(name), bytes);
    expect_found(fmt::format("bit {} of {}", bit, name));
    write_bytes(at(name), whole[name]);
  }
  load(path, layout);
}

TEST_F(Damage, BitsAllOverTheSmallFilesAreFound) {
  for (const char* name : {"COMMITTED", "manifest.json", "state.json"}) {
    std::string bytes = whole[name];
    for (size_t bit = 0; bit < 8 * bytes.size(); bit += 5) {
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
      write_bytes(at(name), bytes);
      EXPECT_THROW(Checkpoint{path}, Error) << name << " bit " << bit;
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    }
    write_bytes(at(name), bytes);
  }
}

TEST_F(Damage, EveryTruncationIsFound) {
  std::mt19937_64 random(12);
  for (int i = 0; i < 40; ++i) {
    auto file = whole.begin();
    std::advance(file, i % static_cast<int>(whole.size()));
    const size_t left = i < 9 ? 0 : random() % file->second.size();
    write_bytes(at(file->first), file->second.substr(0, left));
    expect_found(fmt::format("{} cut to {} bytes", file->first, left));
    write_bytes(at(file->first), file->second + "x");
    expect_found(file->first + " with a byte more");
    write_bytes(at(file->first), file->second);
  }
  load(path, layout);
}

TEST_F(Damage, MissingLinkedAndOtherKindsAreFound) {
  fs::create_directory(dir / "elsewhere");
  for (const auto& [name, bytes] : whole) {
    fs::remove(at(name));
    expect_found(name + " missing");
    write_bytes(dir / "elsewhere/same", bytes);
    fs::create_symlink(dir / "elsewhere/same", at(name));
    expect_found(name + " a link to the same bytes");
    fs::remove(at(name));
    fs::create_directory(at(name));
    expect_found(name + " a directory");
    restore(name);
  }
  load(path, layout);
  fs::rename(at("adapter"), dir / "elsewhere/adapter");
  fs::create_directory_symlink(dir / "elsewhere/adapter", at("adapter"));
  expect_found("adapter a link");
}

TEST_F(Damage, SwappedFilesAreFound) {
  for (const auto& [a, bytes_a] : whole)
    for (const auto& [b, bytes_b] : whole) {
      if (a >= b) continue;
      write_bytes(at(a), bytes_b);
      write_bytes(at(b), bytes_a);
      expect_found(a + " and " + b + " swapped");
      write_bytes(at(a), bytes_a);
      write_bytes(at(b), bytes_b);
    }
  load(path, layout);
}

TEST_F(Damage, FilesOfAnotherStepAreFound) {
  const FlatState later(layout, 2);
  const std::string other = save(dir / "checkpoints", 200, layout, later);
  for (const auto& [name, bytes] : whole) {
    if (read_bytes(other + "/" + name) == bytes) continue;
    write_bytes(at(name), read_bytes(other + "/" + name));
    expect_found(name + " of step 200");
    restore(name);
  }
  // Also with its manifest, and whole.
  for (const char* name : {"manifest.json", "COMMITTED"})
    write_bytes(at(name), read_bytes(other + "/" + name));
  expect_found("manifest of step 200");
  for (const auto& [name, bytes] : whole) write_bytes(at(name), read_bytes(other + "/" + name));
  expect_found("all of step 200");
}

TEST_F(Damage, MissingCheckpointHasTheCallersCode) {
  expect_refused([&] { Checkpoint(dir / "none"); }, ExitCode::no_checkpoint, {"none"});
  expect_refused([&] { Checkpoint(dir / "none", ExitCode::usage); }, ExitCode::usage, {"none"});
  expect_refused([&] { Checkpoint(path + "/state.json"); }, ExitCode::no_checkpoint, {"directory"});
  fs::remove(at("COMMITTED"));
  expect_refused([&] { Checkpoint(path, ExitCode::usage); }, ExitCode::no_checkpoint,
                 {"COMMITTED"});
  fs::remove(at("manifest.json"));
  expect_refused([&] { Checkpoint(path, ExitCode::usage); }, ExitCode::no_checkpoint,
                 {"holds no checkpoint"});
}

// With HDF5's own checksums alone: values read back right, or not at all.
TEST_F(Damage, ReadingAloneGivesNoWrongValue) {
  std::mt19937_64 random(13);
  const std::string name = "shard-00001-of-00003.h5";
  int found = 0;
  for (int i = 0; i < 150; ++i) {
    std::string bytes = whole[name];
    const size_t bit = random() % (8 * bytes.size());
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    write_bytes(at(name), bytes);
    const Checkpoint checkpoint(path);
    try {
      EXPECT_EQ(read_all(checkpoint, Checkpoint::Array::parameters, layout), flat.parameters);
      EXPECT_EQ(read_all(checkpoint, Checkpoint::Array::m, layout), flat.m);
      EXPECT_EQ(read_all(checkpoint, Checkpoint::Array::v, layout), flat.v);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::no_checkpoint);
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      ++found;
    }
  }
  EXPECT_GE(found, 120);  // the rest are bytes that hold nothing
}

TEST_F(Damage, ChecksumFaultNamesFileAndDataSet) {
  const std::string name = "shard-00000-of-00003.h5";
  const std::vector<Slice> own = cut(layout, 3)[0];
  const std::vector<float> v = part_of(flat.v, own);
  std::string bytes = whole[name];
  const size_t place = bytes.find(std::string(reinterpret_cast<const char*>(v.data() + 500), 40));
  ASSERT_NE(place, std::string::npos);
  bytes[place] ^= 4;
  write_bytes(at(name), bytes);
  const Checkpoint checkpoint(path);
  expect_refused([&] { read_all(checkpoint, Checkpoint::Array::v, layout); },
                 ExitCode::no_checkpoint, {name, "/v", "Fletcher32", "checkpoint.resume"});
  EXPECT_EQ(read_all(checkpoint, Checkpoint::Array::m, layout), flat.m);
}

// Hashes say nothing where somebody made them anew.
TEST_F(Damage, ShardsMustAgreeWithTheManifest) {
  write_bytes(at("shard-00000-of-00003.h5"), whole["shard-00001-of-00003.h5"]);
  commit_again();
  expect_found("a shard of another rank");
  restore("shard-00000-of-00003.h5");
  SaveOptions two;
  two.ranks = 2;
  const std::string other = save(dir / "checkpoints", 5, layout, flat, two);
  write_bytes(at("shard-00000-of-00003.h5"), read_bytes(other + "/shard-00000-of-00002.h5"));
  commit_again();
  expect_found("a shard of other ranks");
}

TEST_F(Damage, ManifestIsCheckedBeforeItIsUsed) {
  struct Case {
    const char *from, *to, *words;
  };
  for (const Case& c : std::vector<Case>{
           {"\"format_version\":1", "\"format_version\":2", "a newer utrain wrote it"},
           {"\"format_version\":1", "\"format_version\":0", "format_version"},
           {"\"step\":100", "\"step\":-1", "step"},
           {"\"step\":100", "\"step\":101", "holds step 101"},
           {"\"step\":100", "\"step\":1e2", "step"},
           {"\"ranks\":3", "\"ranks\":2", "slices of 3 ranks"},
           {"\"ranks\":3", "\"ranks\":99999999999", "ranks"},
           {"\"n_elem\":", "\"n_elem\":1", "slices end at"},
           {"[[0,1024,", "[[0,2048,", "held twice"},
           {"[[0,1024,", "[[0,1023,", "held by no rank"},
           {"[[0,1024,", "[[-1,1024,", "slices"},
           {"[[0,1024,", "[[0,18446744073709551615,", "slices"},
           {"[[0,1024,", "[[0,4503599627370496,", "out of order"},
           {"[[0,1024,", "[[1024,", "slices"},
           {"shard-00000", "../d-00000", "file name"},
           {"adapter/adapter_config", "/etc/adapter_config", "file name"},
           {"adapter/adapter_config", "adapter/../adapter_config", "file name"},
           {"adapter/adapter_config", "..", "file name"},
           {"\"index.h5\"", "\"other.h5\"", "index.h5 is missing"},
           {"\"index.h5\"", "\"state.json\"", "twice"},
           {"shard-00001", "shard-00002", "twice"},
           {"shard-00001", "shard-00009", "not in its place"},
           {"\"bytes\":", "\"bytes\":-", "bytes"},
           {"\"bytes\":", "\"bytes\":9", "bytes"},
           {"\"xxh3\":\"", "\"xxh3\":\"G", "no hash"},
           {"{", "[", "manifest.json"}}) {
    SCOPED_TRACE(fmt::format("{} -> {}", c.from, c.to));
    write_bytes(at("manifest.json"), whole["manifest.json"]);
    commit_again([&](std::string& text) {
      const size_t place = text.find(c.from);
      ASSERT_NE(place, std::string::npos);
      text.replace(place, std::string(c.from).size(), c.to);
    });
    expect_refused([&] { Checkpoint{path}; }, ExitCode::no_checkpoint, {c.words});
  }
}

TEST_F(Damage, StateMustBeOfThisStep) {
  write_bytes(at("state.json"), "{\"step\": 99}");
  commit_again();
  expect_refused([&] { Checkpoint{path}; }, ExitCode::no_checkpoint, {"state.json", "100 wanted"});
  write_bytes(at("state.json"), "[]");
  commit_again();
  expect_refused([&] { Checkpoint{path}; }, ExitCode::no_checkpoint, {"no object"});
}

TEST_F(Damage, HugeFilesAreNotRead) {
  for (const char* name : {"COMMITTED", "manifest.json"}) {
    fs::resize_file(at(name), uintmax_t{1} << 40);  // a hole
    expect_refused([&] { Checkpoint{path}; }, ExitCode::no_checkpoint, {name, "at most"});
    restore(name);
  }
}

}  // namespace
}  // namespace utrain
