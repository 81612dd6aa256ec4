// Model directories: the single file, shards, what an index may not do, and the messages for
// weights that are not there.
#include "io/model_files.h"

#include <filesystem>

#include "io_files.h"

namespace utrain {
namespace {

namespace fs = std::filesystem;

// A file of F32 tensors of two elements each.
std::string file_of(const std::vector<std::string>& names) {
  std::string header = "{";
  size_t at = 0;
  for (const std::string& name : names) {
    header += fmt::format(R"("{}":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}},)", name, at,
                          at + 8);
    at += 8;
  }
  header.back() = '}';
  return safetensors_bytes(header, at);
}

constexpr const char* kIndex = "model.safetensors.index.json";

void write_two_shards(const TempDir& dir) {
  write_bytes(dir / "model-00001-of-00002.safetensors", file_of({"a", "b"}));
  write_bytes(dir / "model-00002-of-00002.safetensors", file_of({"c"}));
  write_bytes(dir / kIndex, R"({"metadata":{"total_size":24},"weight_map":{
    "a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors",
    "c":"model-00002-of-00002.safetensors"}})");
}

TEST(ModelFiles, ReadsTheSingleFile) {
  const TempDir dir;
  write_bytes(dir / "model.safetensors", file_of({"b", "a"}));
  const ModelFiles files(dir.str());
  EXPECT_EQ(files.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(files.total_bytes(), 16);
  EXPECT_EQ(files.at("a", {2}).bytes, 8);
  EXPECT_EQ(files.find("c"), nullptr);
}

TEST(ModelFiles, PrefersTheSingleFileToTheIndex) {
  const TempDir dir;
  write_bytes(dir / "model.safetensors", file_of({"d"}));
  write_bytes(dir / kIndex, "not even JSON");
  const ModelFiles files(dir.str());
  EXPECT_EQ(files.names(), (std::vector<std::string>{"d"}));
}

TEST(ModelFiles, ReadsTheShardsOfTheIndex) {
  const TempDir dir;
  write_two_shards(dir);
  const ModelFiles files(dir.str());
  EXPECT_EQ(files.names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(files.total_bytes(), 24);
  EXPECT_EQ(files.at("c", {2}).name, "c");
}

TEST(ModelFiles, NamesTheTensorThatDoesNotFit) {
  const TempDir dir;
  write_bytes(dir / "model.safetensors",
              safetensors_bytes(R"({"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                                R"("q":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[8,12]}})",
                                12));
  const ModelFiles files(dir.str());
  expect_refused(
      [&] {
        files.at("v", {3, 4});
      },
      ExitCode::bad_file, {dir.str(), "tensor v [3, 4] is missing"});
  expect_refused(
      [&] {
        files.at("w", {1, 2});
      },
      ExitCode::bad_file, {"model.safetensors: tensor w: shape [2, 1] found, [1, 2] wanted"});
  expect_refused([&] { files.at("q", {4}); }, ExitCode::bad_file,
                 {"model.safetensors: tensor q: dtype F8_E4M3 found", "wanted"});
}

TEST(ModelFiles, SaysWhatIsMissing) {
  const TempDir dir;
  expect_refused([&] { ModelFiles files(dir / "none"); }, ExitCode::usage,
                 {"none: no such directory", "model.path"});
  expect_refused([&] { ModelFiles files(dir.str()); }, ExitCode::bad_file,
                 {dir.str(), "no weights found", "model.init = \"random\""});
  write_bytes(dir / "pytorch_model-00001-of-00002.bin", "");
  expect_refused([&] { ModelFiles files(dir.str()); }, ExitCode::bad_file,
                 {"pytorch_model*.bin found", "not read", "save_pretrained"});
  write_bytes(dir / "model.safetensors", "");
  expect_refused([&] { ModelFiles files(dir.str()); }, ExitCode::bad_file,
                 {"model.safetensors: 0 bytes"});
}

TEST(ModelFiles, RefusesBadIndexes) {
  const TempDir dir;
  write_bytes(dir / "s.safetensors", file_of({"a"}));
  write_bytes(dir / "t.safetensors", file_of({"b"}));
  write_bytes(dir / "both.safetensors", file_of({"a", "c"}));
  write_bytes(dir / "bad.safetensors", "short");
  fs::create_directory(dir / "sub");
  write_bytes(dir / "sub/s.safetensors", file_of({"a"}));
  const auto map = [](const std::string& members) { return "{\"weight_map\":{" + members + "}}"; };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "byte"},
      {"[]", "array of 0 found, an object wanted"},
      {"{}", "weight_map: nothing found"},
      {R"({"weight_map":null})", "weight_map: nothing found"},
      {R"({"weight_map":["a"]})", "weight_map: array of 1 found"},
      {R"({"weight_map":{}})", "0 files named"},
      {R"({"weight_map":{"a":"s.safetensors"},"weight_map":{}})", "\"weight_map\" found twice"},
      {map(R"("a":"s.safetensors","a":"t.safetensors")"), "\"a\" found twice"},
      {map(R"("a":1)"), "integer 1 found for tensor \"a\""},
      {map(R"("a":"")"), "plain file name"},
      {map(R"("a":".safetensors")"), "plain file name"},
      {map(R"("a":"s.bin")"), "plain file name"},
      {map(R"("a":"sub/s.safetensors")"), "plain file name"},
      {map(R"("a":"../s.safetensors")"), "plain file name"},
      {map(R"("a":"/etc/s.safetensors")"), "plain file name"},
      {map(R"("a":"sub\\s.safetensors")"), "plain file name"},
      {map(R"("a":"s\u0000.safetensors")"), "plain file name"},
      {map(R"("a":"s .safetensors")"), "plain file name"},
      {map(R"("a":"\u00e9.safetensors")"), "plain file name"},
      {map("\"a\":\"" + std::string(300, 's') + ".safetensors\""), "plain file name"},
      {map(R"("a":"none.safetensors")"), "none.safetensors: the index names this file"},
      {map(R"("a":"t.safetensors")"), "t.safetensors: tensor \"a\" is not in it"},
      {map(R"("z":"s.safetensors")"), "s.safetensors: tensor \"z\" is not in it"},
      {map(R"("a":"s.safetensors","c":"both.safetensors")"), "both.safetensors: tensor a found"},
      {map(R"("a":"bad.safetensors")"), "bad.safetensors: 5 bytes found"},
  };
  for (const auto& [text, word] : cases) {
    SCOPED_TRACE(text.substr(0, 100));
    write_bytes(dir / kIndex, text);
    expect_refused([&] { ModelFiles files(dir.str()); }, ExitCode::bad_file, {dir.str(), word});
  }
  write_bytes(dir / kIndex, map(R"("a":"s.safetensors")"));
  EXPECT_NO_THROW(ModelFiles(dir.str()));
  // Sparse: 64 MiB and one byte are refused before they are read.
  fs::resize_file(dir / kIndex, (int64_t{64} << 20) + 1);
  expect_refused([&] { ModelFiles files(dir.str()); }, ExitCode::bad_file,
                 {kIndex, "67108865 bytes found, at most 67108864 wanted"});
}

TEST(ModelFiles, ShardsStayInsideTheDirectoryOrTheHubCache) {
  const TempDir dir;
  const std::string map = R"({"weight_map":{"a":"s.safetensors"}})";
  fs::create_directories(dir / "models--x/snapshots/0123");
  fs::create_directories(dir / "models--x/blobs");
  fs::create_directories(dir / "models--x/blobs-of-others");
  fs::create_directories(dir / "plain");
  write_bytes(dir / "models--x/blobs/cafe", file_of({"a"}));
  write_bytes(dir / "models--x/blobs-of-others/cafe", file_of({"a"}));

  const std::string snapshot = dir / "models--x/snapshots/0123";
  write_bytes(snapshot + "/" + kIndex, map);
  fs::create_symlink("../../blobs/cafe", snapshot + "/s.safetensors");
  EXPECT_EQ(ModelFiles(snapshot).total_bytes(), 8);
  fs::create_directory_symlink(snapshot, dir / "link");
  EXPECT_EQ(ModelFiles(dir / "link").total_bytes(), 8);

  fs::remove(snapshot + "/s.safetensors");
  fs::create_symlink("../../blobs-of-others/cafe", snapshot + "/s.safetensors");
  expect_refused([&] { ModelFiles files(snapshot); }, ExitCode::bad_file,
                 {"s.safetensors: resolves to", "blobs-of-others/cafe"});

  write_bytes(dir / (std::string("plain/") + kIndex), map);
  fs::create_symlink(dir / "models--x/blobs/cafe", dir / "plain/s.safetensors");
  expect_refused([&] { ModelFiles files(dir / "plain"); }, ExitCode::bad_file,
                 {"s.safetensors: resolves to", "blobs/cafe"});
}

TEST(ModelFiles, MovesWithItsTensors) {
  const TempDir dir;
  write_two_shards(dir);
  ModelFiles files(dir.str());
  const StoredTensor* tensor = files.find("b");
  const ModelFiles moved = std::move(files);
  EXPECT_EQ(moved.find("b"), tensor);
  EXPECT_EQ(*moved.find("b")->data, std::byte{'x'});
}

}  // namespace
}  // namespace utrain
