// Reading token data sets of every integer type and layout.
#include "data/token_data_set.h"

#include <gtest/gtest.h>

#include "token_files.h"

namespace utrain {
namespace {

using test::small_token_data_set;
using test::StoredAs;
using test::TokenFileWriter;

const test::TempDir& temp() {
  static const test::TempDir dir;
  return dir;
}

void expect_equal(const TokenDataSet& a, const TokenDataSet& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.offsets, b.offsets);
  EXPECT_EQ(a.loss_mask, b.loss_mask);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
}

TEST(TokenDataSet, ReadsEveryIntegerType) {
  const TokenDataSet data = small_token_data_set();
  const std::string path = temp().file("types.h5");
  uint64_t hash = 0;
  for (const hid_t type :
       {H5T_STD_I8LE, H5T_STD_I8BE, H5T_STD_U8LE, H5T_STD_U8BE, H5T_STD_I16LE, H5T_STD_I16BE,
        H5T_STD_U16LE, H5T_STD_U16BE, H5T_STD_I32LE, H5T_STD_I32BE, H5T_STD_U32LE, H5T_STD_U32BE,
        H5T_STD_I64LE, H5T_STD_I64BE, H5T_STD_U64LE, H5T_STD_U64BE}) {
    StoredAs stored;
    stored.type = type;
    {
      TokenFileWriter writer(path);
      writer.dataset("tokens", {data.tokens.begin(), data.tokens.end()}, stored);
      writer.dataset("offsets", data.offsets, stored);
      writer.dataset("loss_mask", {data.loss_mask.begin(), data.loss_mask.end()}, stored);
      writer.attribute("format_version", 1, type);
      writer.attribute("vocab_size", 100, type);
    }
    const TokenDataSet read = read_token_data_set(path, 100);
    expect_equal(read, data);
    if (hash == 0) hash = read.hash;
    EXPECT_EQ(read.hash, hash);
  }
}

TEST(TokenDataSet, ReadsEveryLayoutAndFilter) {
  const TokenDataSet data = test::random_token_data_set(200, 30, 1);
  const TokenDataSet short_data = small_token_data_set();
  const std::string path = temp().file("layouts.h5");
  std::vector<StoredAs> layouts(6);
  layouts[1].chunk = 64;
  for (int i = 2; i < 6; ++i) layouts[i].chunk = 100;
  layouts[2].deflate = true;
  layouts[3].shuffle = layouts[3].deflate = true;
  layouts[4].fletcher32 = true;
  layouts[5].shuffle = layouts[5].deflate = layouts[5].fletcher32 = true;
  for (StoredAs stored : layouts)
    for (const hid_t type : {H5T_STD_U16LE, H5T_STD_I64BE}) {
      stored.type = type;
      test::write_token_data_set(path, data, stored);
      expect_equal(read_token_data_set(path, 128), data);
    }
  StoredAs compact;
  compact.compact = true;
  test::write_token_data_set(path, short_data, compact);
  expect_equal(read_token_data_set(path, 128), short_data);
}

TEST(TokenDataSet, OtherObjectsAndAttributesAreIgnored) {
  const std::string path = temp().file("extra.h5");
  test::write_token_data_set(path, small_token_data_set());
  {
    const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
    const Hdf5Handle group(H5Gcreate2(file.id(), "notes", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                           H5Gclose);
    const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
    const Hdf5Handle text(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(text.id(), H5T_VARIABLE);
    const Hdf5Handle attribute(
        H5Acreate2(file.id(), "tokenizer_sha256", text.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT),
        H5Aclose);
    const char* value = "0123";
    ASSERT_GE(H5Awrite(attribute.id(), text.id(), &value), 0);
  }
  expect_equal(read_token_data_set(path, 100), small_token_data_set());
}

TEST(TokenDataSet, DocumentsMayAllBeEmpty) {
  const TokenDataSet data = test::make_token_data_set({0, 0});
  const std::string path = temp().file("nothing.h5");
  test::write_token_data_set(path, data);
  expect_equal(read_token_data_set(path, 100), data);
}

TEST(TokenDataSet, HashIsOfTheContents) {
  const std::string path = temp().file("hash.h5");
  const auto hash_of = [&](const TokenDataSet& data) {
    test::write_token_data_set(path, data);
    return read_token_data_set(path, 200).hash;
  };
  const uint64_t hash = hash_of(small_token_data_set());
  std::vector<TokenDataSet> others(4, small_token_data_set());
  others[0].tokens[3] = 7;
  others[1].loss_mask[7] = 1;
  others[2].offsets[1] = 4;
  others[3].vocab_size = 101;
  for (const TokenDataSet& other : others) EXPECT_NE(hash_of(other), hash);
  EXPECT_EQ(hash_of(small_token_data_set()), hash);
}

TEST(TokenDataSet, CountsTargets) {
  const TokenDataSet data = small_token_data_set();
  EXPECT_EQ(data.n_documents(), 3);
  EXPECT_EQ(data.n_targets(0, 5), 3);
  EXPECT_EQ(data.n_targets(0, 3), 1);
  EXPECT_EQ(data.n_targets(0, 2), 0);
  EXPECT_EQ(data.n_targets(1, 0), 0);
  EXPECT_EQ(data.n_targets(2, 1), 0);
}
}  // namespace
}  // namespace utrain
