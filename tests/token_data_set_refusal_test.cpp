// The refusal of everything that is no token data set: exit code 3 (2 where there is no file),
// never a crash.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <limits>

#include "core/error.h"
#include "data/token_data_set.h"
#include "token_files.h"

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
    read_token_data_set(path, 100);
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {ExitCode::done, "it was read"};
}

struct Bad {
  const char* name;
  const char* object;  // named in the message
  const char* what;
  std::function<void(const std::string& path)> make;
};

// A good file but for one dataset or attribute, which `make` writes instead (or leaves out).
std::function<void(const std::string&)> without(std::string left_out,
                                                std::function<void(TokenFileWriter&)> make) {
  return [=](const std::string& path) {
    TokenFileWriter writer(path);
    const TokenDataSet data = small_token_data_set();
    if (left_out != "tokens") writer.dataset("tokens", {data.tokens.begin(), data.tokens.end()});
    if (left_out != "offsets") writer.dataset("offsets", data.offsets);
    if (left_out != "loss_mask")
      writer.dataset("loss_mask", {data.loss_mask.begin(), data.loss_mask.end()});
    if (left_out != "format_version") writer.attribute("format_version", 1);
    if (left_out != "vocab_size") writer.attribute("vocab_size", 100);
    make(writer);
  };
}
std::function<void(const std::string&)> with(std::string name, std::vector<int64_t> values,
                                             hid_t type = H5T_STD_I64LE) {
  return without(name, [=](TokenFileWriter& writer) {
    StoredAs stored;
    stored.type = type;
    writer.dataset(name, values, stored);
  });
}
std::function<void(const std::string&)> with_attribute(std::string name, int64_t value,
                                                       hid_t type = H5T_STD_I64LE) {
  return without(name, [=](TokenFileWriter& writer) { writer.attribute(name, value, type); });
}

void make_dataset(TokenFileWriter& writer, const char* name, hid_t type, std::vector<hsize_t> dims,
                  hid_t creation = H5P_DEFAULT) {
  const Hdf5Handle space(
      dims.empty() ? H5Screate(H5S_SCALAR)
                   : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
      H5Sclose);
  const Hdf5Handle dataset(test::checked(H5Dcreate2(writer.file(), name, type, space.id(),
                                                    H5P_DEFAULT, creation, H5P_DEFAULT)),
                           H5Dclose);
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}
std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// As a writer would, but with values a dataset may claim and not hold.
void make_huge(TokenFileWriter& writer, const char* name, hsize_t count) {
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t chunk = 1024;
  H5Pset_chunk(creation.id(), 1, &chunk);
  make_dataset(writer, name, H5T_STD_I32LE, {count}, creation.id());
}

// HDF5 stores data through any filter it knows by number; this one passes bytes through.
constexpr H5Z_filter_t kOtherFilter = 300;
size_t pass_through(unsigned, size_t, const unsigned*, size_t n_bytes, size_t*, void**) {
  return n_bytes;
}

void make_with_other_filter(TokenFileWriter& writer) {
  const H5Z_class2_t filter = {H5Z_CLASS_T_VERS, kOtherFilter, 1,       1,
                               "pass",           nullptr,      nullptr, pass_through};
  H5Zregister(&filter);
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t chunk = 4;
  H5Pset_chunk(creation.id(), 1, &chunk);
  H5Pset_filter(creation.id(), kOtherFilter, H5Z_FLAG_MANDATORY, 0, nullptr);
  make_dataset(writer, "tokens", H5T_STD_I32LE, {9}, creation.id());
}

void make_external(TokenFileWriter& writer) {
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_external(creation.id(), "/etc/hostname", 0, 36);
  make_dataset(writer, "tokens", H5T_STD_I32LE, {9}, creation.id());
}

void make_virtual(TokenFileWriter& writer) {
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t count = 9;
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose);
  H5Pset_virtual(creation.id(), space.id(), "other.h5", "/tokens", space.id());
  make_dataset(writer, "tokens", H5T_STD_I32LE, {9}, creation.id());
}

void make_text_attribute(TokenFileWriter& writer, const char* name) {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Hdf5Handle text(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(text.id(), 4);
  const Hdf5Handle attribute(
      H5Acreate2(writer.file(), name, text.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  H5Awrite(attribute.id(), text.id(), "1\0\0");
}

void make_list_attribute(TokenFileWriter& writer, const char* name) {
  const hsize_t count = 2;
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose);
  const Hdf5Handle attribute(
      H5Acreate2(writer.file(), name, H5T_STD_I32LE, space.id(), H5P_DEFAULT, H5P_DEFAULT),
      H5Aclose);
}

void make_group(TokenFileWriter& writer, const char* name) {
  const Hdf5Handle group(H5Gcreate2(writer.file(), name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                         H5Gclose);
}

void make_boolean_mask(TokenFileWriter& writer) {
  const Hdf5Handle type(H5Tenum_create(H5T_STD_I8LE), H5Tclose);
  const int8_t no = 0, yes = 1;
  H5Tenum_insert(type.id(), "FALSE", &no);
  H5Tenum_insert(type.id(), "TRUE", &yes);
  make_dataset(writer, "loss_mask", type.id(), {9});
}

void damage_chunk(const std::string& path, StoredAs stored) {
  const TokenDataSet data = test::make_token_data_set({4000});
  stored.chunk = 4000;
  test::write_token_data_set(path, data, stored);
  hsize_t offset = 0;
  {
    const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
    const Hdf5Handle dataset(H5Dopen2(file.id(), "tokens", H5P_DEFAULT), H5Dclose);
    const Hdf5Handle space(H5Dget_space(dataset.id()), H5Sclose);
    haddr_t address = 0;
    hsize_t size = 0;
    unsigned mask = 0;
    test::checked(H5Dget_chunk_info(dataset.id(), space.id(), 0, &offset, &mask, &address, &size));
    offset = address + size / 2;
  }
  std::string bytes = bytes_of(path);
  bytes[offset] = static_cast<char>(bytes[offset] ^ 0x55);
  write_bytes(path, bytes);
}

std::vector<Bad> bad_files() {
  StoredAs deflated, summed;
  deflated.deflate = true;
  summed.fletcher32 = true;
  return {
      {"empty", "", "HDF5", [](auto& path) { write_bytes(path, ""); }},
      {"text", "", "make it from JSON lines with tools/prepare",
       [](auto& path) { write_bytes(path, std::string(5000, 'x')); }},
      {"truncated", "", "HDF5",
       [](auto& path) {
         test::write_token_data_set(path, small_token_data_set());
         const std::string bytes = bytes_of(path);
         write_bytes(path, bytes.substr(0, bytes.size() - 10));
       }},
      {"signature_only", "", "HDF5", [](auto& path) { write_bytes(path, "\x89HDF\r\n\x1a\n"); }},
      {"directory", "", "regular", [](auto& path) { std::filesystem::create_directory(path); }},
      {"pipe", "", "regular", [](auto& path) { ::mkfifo(path.c_str(), 0600); }},
      {"no_tokens", "/tokens", "missing", without("tokens", [](auto&) {})},
      {"no_offsets", "/offsets", "missing", without("offsets", [](auto&) {})},
      {"no_mask", "/loss_mask", "missing", without("loss_mask", [](auto&) {})},
      {"no_version", "format_version", "missing", without("format_version", [](auto&) {})},
      {"version_2", "format_version", "is 2", with_attribute("format_version", 2)},
      {"version_text", "format_version", "integer",
       without("format_version", [](auto& w) { make_text_attribute(w, "format_version"); })},
      {"no_vocab", "vocab_size", "missing", without("vocab_size", [](auto&) {})},
      {"vocab_text", "vocab_size", "integer",
       without("vocab_size", [](auto& w) { make_text_attribute(w, "vocab_size"); })},
      {"vocab_float", "vocab_size", "integer", with_attribute("vocab_size", 100, H5T_IEEE_F32LE)},
      {"vocab_list", "vocab_size", "2 values",
       without("vocab_size", [](auto& w) { make_list_attribute(w, "vocab_size"); })},
      {"vocab_0", "vocab_size", "is 0", with_attribute("vocab_size", 0)},
      {"vocab_negative", "vocab_size", "is -1", with_attribute("vocab_size", -1)},
      {"vocab_of_another_model", "vocab_size", "is 101", with_attribute("vocab_size", 101)},
      {"vocab_2_to_62", "vocab_size", "4611686018427387904",
       with_attribute("vocab_size", int64_t{1} << 62, H5T_STD_U64BE)},
      {"float_tokens", "/tokens", "floating",
       with("tokens", {0, 1, 2, 3, 4, 5, 6, 7, 8}, H5T_IEEE_F32LE)},
      {"boolean_mask", "/loss_mask", "bool", without("loss_mask", make_boolean_mask)},
      {"string_tokens", "/tokens", "strings",
       without("tokens", [](auto& w) { make_dataset(w, "tokens", H5T_C_S1, {9}); })},
      {"tokens_rank_2", "/tokens", "2 dimensions",
       without("tokens",
               [](auto& w) {
                 make_dataset(w, "tokens", H5T_STD_I32LE, {3, 3});
               })},
      {"tokens_scalar", "/tokens", "0 dimensions",
       without("tokens", [](auto& w) { make_dataset(w, "tokens", H5T_STD_I32LE, {}); })},
      {"tokens_group", "/tokens", "no dataset",
       without("tokens", [](auto& w) { make_group(w, "tokens"); })},
      {"mask_short", "/loss_mask", "8 values", with("loss_mask", {0, 0, 1, 1, 1, 0, 1, 0})},
      {"mask_2", "/loss_mask", "document 2, position 1",
       with("loss_mask", {0, 0, 1, 1, 1, 0, 2, 0, 1})},
      {"mask_negative", "/loss_mask", "document 0, position 0",
       with("loss_mask", {-1, 0, 1, 1, 1, 0, 1, 0, 1})},
      {"mask_256", "/loss_mask", "document 0, position 2",
       with("loss_mask", {0, 0, 256, 1, 1, 0, 1, 0, 1})},
      {"offsets_from_1", "/offsets", "starts at 1", with("offsets", {1, 5, 9})},
      {"offsets_fall", "/offsets", "falls from 7 to 5", with("offsets", {0, 7, 5, 9})},
      {"offsets_end_early", "/offsets", "ends at 8", with("offsets", {0, 5, 8})},
      {"offsets_end_late", "/offsets", "ends at 10", with("offsets", {0, 5, 10})},
      {"offsets_2_to_63", "/offsets", "ends at 9223372036854775807",
       with("offsets", {0, 5, std::numeric_limits<int64_t>::max()}, H5T_STD_U64BE)},
      {"no_document", "/offsets", "no document", with("offsets", {0})},
      {"no_offset", "/offsets", "no document", with("offsets", {})},
      {"token_100", "/tokens", "100 in document 0, position 3",
       with("tokens", {0, 1, 2, 100, 4, 5, 6, 7, 8})},
      {"token_negative", "/tokens", "-3 in document 2, position 0",
       with("tokens", {0, 1, 2, 3, 4, -3, 6, 7, 8})},
      {"token_2_to_32", "/tokens", "document 0, position 1",
       with("tokens", {0, int64_t{1} << 32, 2, 3, 4, 5, 6, 7, 8})},
      {"soft_link", "/tokens", "link",
       without("tokens",
               [](auto& w) {
                 H5Lcreate_soft("/loss_mask", w.file(), "tokens", H5P_DEFAULT, H5P_DEFAULT);
               })},
      {"dangling_link", "/tokens", "link",
       without("tokens",
               [](auto& w) {
                 H5Lcreate_soft("/nowhere", w.file(), "tokens", H5P_DEFAULT, H5P_DEFAULT);
               })},
      {"external_link", "/offsets", "link",
       without("offsets",
               [](auto& w) {
                 H5Lcreate_external("other.h5", "/offsets", w.file(), "offsets", H5P_DEFAULT,
                                    H5P_DEFAULT);
               })},
      {"external_storage", "/tokens", "another file", without("tokens", make_external)},
      {"virtual", "/tokens", "virtual", without("tokens", make_virtual)},
      {"other_filter", "/tokens", "filter 300", without("tokens", make_with_other_filter)},
      {"claims_2_to_40", "/tokens", "claims",
       without("tokens", [](auto& w) { make_huge(w, "tokens", hsize_t{1} << 40); })},
      {"claims_many_documents", "/offsets", "claims",
       without("offsets", [](auto& w) { make_huge(w, "offsets", hsize_t{1} << 30); })},
      {"damaged_checksum", "/tokens", "hecksum", [=](auto& path) { damage_chunk(path, summed); }},
      {"damaged_deflate", "/tokens", "inflate", [=](auto& path) { damage_chunk(path, deflated); }},
  };
}

TEST(TokenDataSetRefusal, RefusesBadFiles) {
  for (const Bad& bad : bad_files()) {
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
  without("tokens",
          [](auto& writer) { make_huge(writer, "tokens", (hsize_t{1} << 40) + 1); })(path);
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
  const std::string bytes = bytes_of(good);
  std::mt19937_64 random(11);
  int n_refused = 0;
  for (int i = 0; i < 200; ++i) {
    std::string damaged = bytes;
    if (i % 4 == 0)
      damaged.resize(random() % bytes.size());
    else
      damaged[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    write_bytes(path, damaged);
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
