// safetensors: every malformed header is refused by its place, files survive a round trip, and a
// failed write leaves nothing behind.
#include "io/safetensors.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "io_files.h"

namespace utrain {
namespace {

void expect_bad(const std::string& bytes, const std::vector<std::string>& words) {
  const TempDir dir;
  write_bytes(dir / "bad.safetensors", bytes);
  std::vector<std::string> all = words;
  all.push_back("bad.safetensors");
  expect_refused([&] { SafetensorsFile file(dir / "bad.safetensors"); }, ExitCode::bad_file, all);
}

// One tensor "w" with these three values, as text, over n bytes of data.
std::string one_tensor(const std::string& dtype, const std::string& shape,
                       const std::string& offsets, size_t n) {
  return safetensors_bytes(
      fmt::format(R"({{"w":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape, offsets),
      n);
}

struct BadTensor {
  const char *dtype, *shape, *offsets;
  size_t n_data;
  const char* word;
};

TEST(SafetensorsFile, RefusesBadTensors) {
  const std::vector<BadTensor> cases = {
      {R"("F31")", "[2]", "[0,8]", 8, "unknown dtype found: string \"F31\""},
      {"32", "[2]", "[0,8]", 8, "unknown dtype found: integer 32"},
      {"null", "[2]", "[0,8]", 8, "unknown dtype"},
      {R"("F32")", "2", "[0,8]", 8, "shape: integer 2 found, an array wanted"},
      {R"("F32")", "[2.0]", "[0,8]", 8, "shape: number 2.0 found"},
      {R"("F32")", "[2e0]", "[0,8]", 8, "shape: number 2.0 found"},
      {R"("F32")", "[-2]", "[0,8]", 8, "shape: integer -2 found"},
      {R"("F32")", "[\"2\"]", "[0,8]", 8, "shape: string \"2\" found"},
      {R"("F32")", "[true]", "[0,8]", 8, "shape: true found"},
      {R"("F32")", "[9223372036854775808]", "[0,8]", 8, "shape: integer 9223372036854775808 found"},
      {R"("F32")", "[18446744073709551616]", "[0,8]", 8, "shape: number"},
      {R"("U8")", "[9223372036854775807]", "[0,8]", 8, "larger than 2^63 bits"},
      {R"("U8")", "[4294967296,4294967296]", "[0,0]", 0, "larger than 2^63 bits"},
      {R"("U8")", "[4294967296,4294967296,0]", "[0,0]", 0, "larger than 2^63 bits"},
      {R"("F32")", "[1,1,1,1,1,1,1,1,1]", "[0,4]", 4, "9 dimensions found, at most 8"},
      {R"("F32")", "[[2]]", "[0,8]", 8, "levels"},
      {R"("F4")", "[3]", "[0,2]", 2, "whole bytes"},
      {R"("F6_E2M3")", "[2]", "[0,2]", 2, "whole bytes"},
      {R"("F32")", "[2]", "[0,4]", 4, "4 bytes found, 8 wanted for F32 [2]"},
      {R"("F32")", "[2]", "[0,9]", 9, "9 bytes found, 8 wanted"},
      {R"("F32")", "[2]", "[8,0]", 8, "data_offsets [8, 0] found"},
      {R"("F32")", "[2]", "[0,8]", 7, "inside 7 bytes of data"},
      {R"("F32")", "[2]", "[0,9223372036854775807]", 8, "data_offsets"},
      {R"("F32")", "[2]", "[9223372036854775800,9223372036854775807]", 8, "data_offsets"},
      {R"("F32")", "[2]", "[0]", 8, "1 numbers found, 2 wanted"},
      {R"("F32")", "[2]", "[0,8,8]", 8, "3 numbers found, 2 wanted"},
      {R"("F32")", "[2]", "[0.0,8]", 8, "data_offsets: number 0.0 found"},
      {R"("F32")", "[2]", "{}", 8, "data_offsets: object of 0 found"},
      {R"("F32")", "[2]", "[1,9]", 9, "begin at 1, 0 wanted (hole)"},
  };
  for (const BadTensor& c : cases) {
    SCOPED_TRACE(fmt::format("{} {} {}", c.dtype, c.shape, c.offsets));
    const bool at_tensor = std::string(c.word) != "levels";
    expect_bad(one_tensor(c.dtype, c.shape, c.offsets, c.n_data),
               {at_tensor ? "tensor w (header byte 1)" : "header", c.word});
  }
}

TEST(SafetensorsFile, RefusesBadHeaders) {
  const std::string w = R"("w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  const std::string v = R"("v":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})";
  const std::vector<std::pair<std::string, std::string>> headers = {
      {"", "'{' wanted"},
      {" {}", "'{' wanted"},
      {"[]", "'{' wanted"},
      {"{", "header: byte"},
      {"{}}", "header: byte 3"},
      {"{" + w + "," + w + "}", "\"w\" found twice"},
      {R"({"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       "\"dtype\" found twice"},
      {R"({"w":{"shape":[1],"data_offsets":[0,4]}})", "dtype is missing"},
      {R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", "shape is missing"},
      {R"({"w":{"dtype":"F32","shape":[1]}})", "data_offsets is missing"},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":0}})", "unknown key"},
      {R"({"w":[1]})", "array of 1 found, an object wanted"},
      {R"({"__metadata__":{"format":1},)" + w + "}", "key string \"format\" is integer 1"},
      {R"({"__metadata__":"pt",)" + w + "}", "__metadata__: string \"pt\" found"},
      {"{\"w\xFF\":0}", "header: byte"},
      {R"({"w\u0007":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "control character"},
      {"{\"" + std::string(513, 'n') + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       "name of 513 bytes"},
      {"{" + v + "}", "hole"},
      {"{" + w + R"(,"v":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", "overlap"},
      {"{" + w + R"(,"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "overlap"},
      {"{" + w + R"(,"v":{"dtype":"F32","shape":[1],"data_offsets":[5,9]}})", "hole"},
      {std::string("{}\0\0", 4), "NUL"},
  };
  for (const auto& [header, word] : headers) {
    SCOPED_TRACE(header.substr(0, 80));
    expect_bad(safetensors_bytes(header, 9), {word});
  }
  expect_bad(safetensors_bytes("{" + w + "}", 5), {"1 after the last tensor"});
  expect_bad(safetensors_bytes("{}", 1), {"1 after the last tensor"});
}

TEST(SafetensorsFile, RefusesBadFiles) {
  expect_bad("", {"0 bytes found, at least 8 wanted"});
  expect_bad("1234567", {"7 bytes found"});
  expect_bad(little_endian(3) + "{}", {"header of 3 bytes found in a file of 10 bytes"});
  expect_bad(little_endian(100000001) + "{}", {"header of 100000001 bytes", "100000000 wanted"});
  expect_bad(little_endian(~uint64_t{0}) + "{}", {"18446744073709551615"});
  expect_bad(little_endian(uint64_t{1} << 63) + "{}", {"9223372036854775808"});
  expect_bad("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {"git lfs pull"});

  const TempDir dir;
  expect_refused([&] { SafetensorsFile file(dir / "none"); }, ExitCode::usage,
                 {"none: no such file"});
  expect_refused([&] { SafetensorsFile file(dir / "none", ExitCode::bad_file); },
                 ExitCode::bad_file, {"none: no such file"});
  expect_refused([&] { SafetensorsFile file(dir.str()); }, ExitCode::bad_file,
                 {"not a regular file"});
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_refused([&] { SafetensorsFile file(dir / "pipe"); }, ExitCode::bad_file,
                 {"not a regular file"});
}

TEST(SafetensorsFile, RefusesMoreThanAMillionTensors) {
  std::string header = "{";
  for (int i = 0; i < 1000001; ++i) header += fmt::format("\"{:x}\":0,", i);
  header.back() = '}';
  expect_bad(safetensors_bytes(header, 0), {"1000001 tensors found"});
}

TEST(SafetensorsFile, EveryCutAndEveryFlippedByteIsRefusedOrRead) {
  const std::string good = safetensors_bytes(
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}})",
      8);
  const TempDir dir;
  const std::string path = dir / "f.safetensors";
  const auto try_to_read = [&](const std::string& bytes) {
    write_bytes(path, bytes);
    try {
      SafetensorsFile file(path);
      for (const auto& entry : file.tensors()) {
        ASSERT_LE(entry.second.bytes, static_cast<int64_t>(bytes.size()));
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_file);
    }
  };
  for (size_t n = 0; n < good.size(); ++n) {
    write_bytes(path, good.substr(0, n));
    EXPECT_THROW(SafetensorsFile{path}, Error) << n;
  }
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int value : {0, 0x20, 0x22, 0x2C, 0x39, 0x5B, 0x7D, 0xFF}) {
      std::string bytes = good;
      bytes[i] = static_cast<char>(value);
      try_to_read(bytes);
    }
  }
}

TEST(SafetensorsFile, ReadsEmptyScalarAndPaddedHeaders) {
  const TempDir dir;
  write_bytes(dir / "empty", safetensors_bytes("{}", 0));
  EXPECT_TRUE(SafetensorsFile(dir / "empty").tensors().empty());
  write_bytes(dir / "f",
              safetensors_bytes(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                                R"("z":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]},)"
                                R"("f4":{"dtype":"F4","shape":[2],"data_offsets":[4,5]},)"
                                R"("__metadata__":{"format":"pt"}}     )",
                                5));
  const SafetensorsFile file(dir / "f");
  EXPECT_EQ(file.find("s")->n_elem(), 1);
  EXPECT_EQ(file.find("z")->n_elem(), 0);
  EXPECT_EQ(file.find("f4")->bytes, 1);
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

TEST(SafetensorsWriter, WhatIsWrittenIsRead) {
  const TempDir dir;
  const std::string path = dir / "out.safetensors";
  const std::vector<float> w = {1, 2, 3, 4, 5, 6};
  const std::vector<int64_t> step = {int64_t{1} << 62};
  const std::vector<double> loss = {0.1};
  const uint8_t flag = 1;
  SafetensorsWriter writer(path);
  writer.declare("flag", FileDType::boolean, {1});
  writer.declare("w", FileDType::f32, {2, 3});
  writer.declare("a\"\xC3\xA9", FileDType::f64, {});
  writer.declare("step", FileDType::i64, {1});
  writer.declare("none", FileDType::bf16, {0, 4});
  writer.write("w", w.data(), 8);
  writer.write("a\"\xC3\xA9", loss.data(), 8);
  writer.write("flag", &flag, 1);
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.write("w", w.data() + 2, 16);
  writer.write("step", step.data(), 8);
  writer.commit();
  EXPECT_EQ(dir.n_files(), 1u);

  uint64_t n_header = 0;
  std::memcpy(&n_header, read_bytes(path).data(), 8);
  EXPECT_EQ(n_header % 8, 0u);
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.find("w")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(file.find("w")->data, w.data(), 24), 0);
  EXPECT_EQ(std::memcmp(file.find("step")->data, step.data(), 8), 0);
  EXPECT_EQ(file.find("step")->dtype, FileDType::i64);
  EXPECT_EQ(*file.find("flag")->data, std::byte{1});
  EXPECT_EQ(file.find("none")->bytes, 0);
  double back = 0;
  read_elements(*file.find("a\"\xC3\xA9"), 0, 1, &back);
  EXPECT_EQ(back, 0.1);
  // 8-byte elements lie before smaller ones.
  EXPECT_LT(file.find("step")->data, file.find("w")->data);
  EXPECT_LT(file.find("w")->data, file.find("flag")->data);
}

TEST(SafetensorsWriter, LeavesTheOldFileUntilCommit) {
  const TempDir dir;
  const std::string path = dir / "f";
  write_bytes(path, "old");
  {
    SafetensorsWriter writer(path);
    writer.declare("w", FileDType::f32, {1});
    const float x = 1;
    writer.write("w", &x, 4);
    EXPECT_EQ(dir.n_files(), 2u);
  }
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_EQ(dir.n_files(), 1u);
  {
    SafetensorsWriter writer(path);
    writer.declare("w", FileDType::f32, {1});
    EXPECT_THROW(writer.commit(), Error);
  }
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_EQ(dir.n_files(), 1u);
}

TEST(SafetensorsWriter, RefusesMistakesOfItsCaller) {
  const TempDir dir;
  const float x[2] = {1, 2};
  SafetensorsWriter writer(dir / "f");
  writer.declare("w", FileDType::f32, {1});
  EXPECT_THROW(writer.declare("w", FileDType::f32, {1}), Error);
  EXPECT_THROW(writer.declare("n", FileDType::f32, {-1}), Error);
  EXPECT_THROW(writer.declare("o", FileDType::f32, {int64_t{1} << 62}), Error);
  EXPECT_THROW(writer.declare("h", FileDType::f4, {1}), Error);
  EXPECT_THROW(writer.write("v", x, 4), Error);
  EXPECT_THROW(writer.write("w", x, 8), Error);
  EXPECT_THROW(writer.declare("late", FileDType::f32, {1}), Error);
}

TEST(SafetensorsWriter, AFullDiskIsAnIoErrorAndLeavesNothing) {
  const TempDir dir;
  expect_refused([&] { SafetensorsWriter writer(dir / "no/f"); }, ExitCode::io,
                 {"no/f", "cannot be created"});
  // A limit on file size stands in for the full disk.
  struct rlimit old;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {4096, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::vector<float> w(4096);
  expect_refused(
      [&] {
        SafetensorsWriter writer(dir / "f");
        writer.declare("w", FileDType::f32, {4096});
        writer.write("w", w.data(), 16384);
      },
      ExitCode::io, {"/f: ", "writing 16384 bytes at", "failed after"});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(dir.n_files(), 0u);
}

TEST(AtomicFile, StepsAroundALeftoverAndReplacesWholeFiles) {
  const TempDir dir;
  const std::string path = dir / "f";
  const std::string leftover = fmt::format("{}.tmp-{}-0", path, ::getpid());
  write_bytes(leftover, "left");
  write_text_file(path, "one");
  write_text_file(path, "two");
  EXPECT_EQ(read_bytes(path), "two");
  EXPECT_EQ(read_bytes(leftover), "left");
  EXPECT_EQ(dir.n_files(), 2u);
  EXPECT_EQ(read_text_file(path, 3), "two");
  expect_refused([&] { read_text_file(path, 2); }, ExitCode::bad_file,
                 {"3 bytes found, at most 2"});
}

TEST(FileDType, NamesAndSizesStandAtTheirPlace) {
  EXPECT_EQ(name_of(FileDType::boolean), "BOOL");
  EXPECT_EQ(name_of(FileDType::bf16), "BF16");
  EXPECT_EQ(name_of(FileDType::f32), "F32");
  EXPECT_EQ(name_of(FileDType::u64), "U64");
  EXPECT_EQ(bits_of(FileDType::f6_e3m2), 6);
  EXPECT_EQ(bits_of(FileDType::c64), 64);
}

}  // namespace
}  // namespace utrain
