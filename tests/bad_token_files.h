// Files that are no token data sets, each for one reason: how to make it, and what a refusal names.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "token_files.h"

namespace utrain::test {

inline constexpr int64_t kModelVocab = 320;  // of the model that they do not fit

struct BadTokenFile {
  const char* name;
  const char* object;  // named in the message
  const char* what;
  std::function<void(const std::string& path)> make;
};

// A good file but for one dataset or attribute, which `make` writes instead (or leaves out).
inline std::function<void(const std::string&)> without(std::string left_out,
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
inline std::function<void(const std::string&)> with(std::string name, std::vector<int64_t> values,
                                                    hid_t type = H5T_STD_I64LE) {
  return without(name, [=](TokenFileWriter& writer) {
    StoredAs stored;
    stored.type = type;
    writer.dataset(name, values, stored);
  });
}
inline std::function<void(const std::string&)> with_attribute(std::string name, int64_t value,
                                                              hid_t type = H5T_STD_I64LE) {
  return without(name, [=](TokenFileWriter& writer) { writer.attribute(name, value, type); });
}

inline void make_dataset(TokenFileWriter& writer, const char* name, hid_t type,
                         std::vector<hsize_t> dims, hid_t creation = H5P_DEFAULT) {
  const Hdf5Handle space(
      dims.empty() ? H5Screate(H5S_SCALAR)
                   : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
      H5Sclose);
  const Hdf5Handle dataset(checked(H5Dcreate2(writer.file(), name, type, space.id(), H5P_DEFAULT,
                                              creation, H5P_DEFAULT)),
                           H5Dclose);
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}
inline std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// As a writer would, but with values a dataset may claim and not hold.
inline void make_huge(TokenFileWriter& writer, const char* name, hsize_t count) {
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t chunk = 1024;
  H5Pset_chunk(creation.id(), 1, &chunk);
  make_dataset(writer, name, H5T_STD_I32LE, {count}, creation.id());
}

// HDF5 stores data through any filter it knows by number; this one passes bytes through.
inline constexpr H5Z_filter_t kOtherFilter = 300;
inline size_t pass_through(unsigned, size_t, const unsigned*, size_t n_bytes, size_t*, void**) {
  return n_bytes;
}

inline void make_with_other_filter(TokenFileWriter& writer) {
  const H5Z_class2_t filter = {H5Z_CLASS_T_VERS, kOtherFilter, 1,       1,
                               "pass",           nullptr,      nullptr, pass_through};
  H5Zregister(&filter);
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t chunk = 4;
  H5Pset_chunk(creation.id(), 1, &chunk);
  H5Pset_filter(creation.id(), kOtherFilter, H5Z_FLAG_MANDATORY, 0, nullptr);
  make_dataset(writer, "tokens", H5T_STD_I32LE, {9}, creation.id());
}

inline void make_external(TokenFileWriter& writer) {
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_external(creation.id(), "/etc/hostname", 0, 36);
  make_dataset(writer, "tokens", H5T_STD_I32LE, {9}, creation.id());
}

inline void make_virtual(TokenFileWriter& writer) {
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const hsize_t count = 9;
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose);
  H5Pset_virtual(creation.id(), space.id(), "other.h5", "/tokens", space.id());
  make_dataset(writer, "tokens", H5T_STD_I32LE, {9}, creation.id());
}

inline void make_text_attribute(TokenFileWriter& writer, const char* name) {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Hdf5Handle text(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(text.id(), 4);
  const Hdf5Handle attribute(
      H5Acreate2(writer.file(), name, text.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  H5Awrite(attribute.id(), text.id(), "1\0\0");
}

inline void make_list_attribute(TokenFileWriter& writer, const char* name) {
  const hsize_t count = 2;
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose);
  const Hdf5Handle attribute(
      H5Acreate2(writer.file(), name, H5T_STD_I32LE, space.id(), H5P_DEFAULT, H5P_DEFAULT),
      H5Aclose);
}

inline void make_group(TokenFileWriter& writer, const char* name) {
  const Hdf5Handle group(H5Gcreate2(writer.file(), name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                         H5Gclose);
}

inline void make_boolean_mask(TokenFileWriter& writer) {
  const Hdf5Handle type(H5Tenum_create(H5T_STD_I8LE), H5Tclose);
  const int8_t no = 0, yes = 1;
  H5Tenum_insert(type.id(), "FALSE", &no);
  H5Tenum_insert(type.id(), "TRUE", &yes);
  make_dataset(writer, "loss_mask", type.id(), {9});
}

inline void damage_chunk(const std::string& path, StoredAs stored) {
  const TokenDataSet data = make_token_data_set({4000});
  stored.chunk = 4000;
  write_token_data_set(path, data, stored);
  hsize_t offset = 0;
  {
    const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
    const Hdf5Handle dataset(H5Dopen2(file.id(), "tokens", H5P_DEFAULT), H5Dclose);
    const Hdf5Handle space(H5Dget_space(dataset.id()), H5Sclose);
    haddr_t address = 0;
    hsize_t size = 0;
    unsigned mask = 0;
    checked(H5Dget_chunk_info(dataset.id(), space.id(), 0, &offset, &mask, &address, &size));
    offset = address + size / 2;
  }
  std::string bytes = bytes_of(path);
  bytes[offset] = static_cast<char>(bytes[offset] ^ 0x55);
  write_bytes(path, bytes);
}

inline std::vector<BadTokenFile> bad_token_files() {
  StoredAs deflated, summed;
  deflated.deflate = true;
  summed.fletcher32 = true;
  return {
      {"empty", "", "HDF5", [](auto& path) { write_bytes(path, ""); }},
      {"text", "", "make it from JSON lines with tools/prepare",
       [](auto& path) { write_bytes(path, std::string(5000, 'x')); }},
      {"truncated", "", "HDF5",
       [](auto& path) {
         write_token_data_set(path, small_token_data_set());
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
      {"vocab_of_another_model", "vocab_size", "is 321",
       with_attribute("vocab_size", kModelVocab + 1)},
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
      {"tokenizer_number", "tokenizer_sha256", "is not one text",
       with_attribute("tokenizer_sha256", 7)},
      {"damaged_deflate", "/tokens", "inflate", [=](auto& path) { damage_chunk(path, deflated); }},
  };
}

}  // namespace utrain::test
