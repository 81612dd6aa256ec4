// The refusal of everything that is no token data set: exit code 3 (2 where there is no file),
// never a crash.
#include <gtest/gtest.h>

#include "bad_token_files.h"
#include "core/error.h"
#include "data/token_data_set.h"

// HDF5 1.10 itself loses a few hundred bytes when it refuses a damaged header; ours are counted as
// open handles below.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}

namespace utrain {
namespace {

using test::small_token_data_set;
using test::StoredAs;
using test::TokenFileWriter;

const test::TempDir& temp() {
  static const test::TempDir dir;
  return dir;
}

// What read_token_data_set says about a file, and its exit code.
std::pair<ExitCode, std::string> refusal(const std::string& path) {
  try {
    read_token_data_set(path, test::kModelVocab);
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {ExitCode::done, "it was read"};
}

TEST(TokenDataSetRefusal, RefusesBadFiles) {
  for (const test::BadTokenFile& bad : test::bad_token_files()) {
    SCOPED_TRACE(bad.name);
    const std::string path = temp().file(std::string("bad_") + bad.name + ".h5");
    bad.make(path);
    const auto [code, message] = refusal(path);
    EXPECT_EQ(code, ExitCode::bad_file) << message;
    EXPECT_NE(message.find(path), std::string::npos) << message;
    EXPECT_NE(message.find(bad.object), std::string::npos) << message;
    EXPECT_NE(message.find(bad.what), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_EQ(H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL), 0);
  }
}

TEST(TokenDataSetRefusal, MoreThan2To40TokensAreRefusedBeforeTheyAreAllocated) {
  const std::string path = temp().file("many.h5");
  test::without("tokens", [](auto& writer) {
    test::make_huge(writer, "tokens", (hsize_t{1} << 40) + 1);
  })(path);
  // A hole, so that the file is large enough to be believed.
  std::filesystem::resize_file(path, uintmax_t{1} << 31);
  const auto [code, message] = refusal(path);
  EXPECT_EQ(code, ExitCode::bad_file);
  EXPECT_NE(message.find("1099511627776 wanted"), std::string::npos) << message;
  std::filesystem::remove(path);
}

TEST(TokenDataSetRefusal, MissingPathIsAUsageError) {
  test::write_token_data_set(temp().file("there.h5"), small_token_data_set());
  for (const char* name : {"absent.h5", "absent/train.h5", "there.h5/train.h5"}) {
    const auto [code, message] = refusal(temp().file(name));
    EXPECT_EQ(code, ExitCode::usage) << message;
    EXPECT_NE(message.find(name), std::string::npos) << message;
  }
  EXPECT_EQ(refusal("").first, ExitCode::usage);
}

TEST(TokenDataSetRefusal, DamagedFilesAreReadOrRefusedNeverWorse) {
  const TokenDataSet data = small_token_data_set();
  const std::string good = temp().file("good.h5"), path = temp().file("damaged.h5");
  StoredAs stored;
  stored.chunk = 4;
  stored.shuffle = stored.deflate = stored.fletcher32 = true;
  test::write_token_data_set(good, data, stored);
  const std::string bytes = test::bytes_of(good);
  std::mt19937_64 random(11);
  int n_refused = 0;
  for (int i = 0; i < 200; ++i) {
    std::string damaged = bytes;
    if (i % 4 == 0)
      damaged.resize(random() % bytes.size());
    else
      damaged[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    test::write_bytes(path, damaged);
    try {
      const TokenDataSet read = read_token_data_set(path, 100);
      EXPECT_EQ(read.offsets.front(), 0);
      EXPECT_EQ(read.offsets.back(), read.n_tokens());
      EXPECT_EQ(read.loss_mask.size(), read.tokens.size());
      for (const int32_t token : read.tokens) EXPECT_LT(static_cast<uint32_t>(token), 100u);
    } catch (const Error& error) {
      ++n_refused;
      EXPECT_EQ(error.code(), ExitCode::bad_file) << error.what();
    }
  }
  EXPECT_GE(n_refused, 50);
  EXPECT_EQ(H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL), 0);
}

}  // namespace
}  // namespace utrain
