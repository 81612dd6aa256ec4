// Token data sets for tests: made in memory, and written as HDF5 in any integer type and layout.
#pragma once

#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/token_data_set.h"
#include "io/hdf5.h"

namespace utrain::test {

// A directory of this process, removed at the end.
class TempDir {
 public:
  TempDir()
      : path_(std::filesystem::temp_directory_path() /
              ("utrain_test_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline hid_t checked(hid_t id) {
  if (id < 0) throw std::runtime_error("test file: " + hdf5_reason());
  return id;
}

struct StoredAs {
  hid_t type = H5T_STD_I32LE;
  hsize_t chunk = 0;  // 0 = contiguous
  bool compact = false, deflate = false, shuffle = false, fletcher32 = false;
};

class TokenFileWriter {
 public:
  explicit TokenFileWriter(const std::string& path)
      : file_(checked(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT)), H5Fclose) {
  }

  hid_t file() const { return file_.id(); }

  void dataset(const std::string& name, const std::vector<int64_t>& values,
               const StoredAs& stored = {}) {
    const Hdf5Handle creation(checked(H5Pcreate(H5P_DATASET_CREATE)), H5Pclose);
    const hsize_t count = values.size(),
                  chunk = std::min<hsize_t>(stored.chunk, count + (count == 0));
    if (stored.chunk) H5Pset_chunk(creation.id(), 1, &chunk);
    if (stored.compact) H5Pset_layout(creation.id(), H5D_COMPACT);
    if (stored.shuffle) H5Pset_shuffle(creation.id());
    if (stored.deflate) H5Pset_deflate(creation.id(), 6);
    if (stored.fletcher32) H5Pset_fletcher32(creation.id());
    const Hdf5Handle space(checked(H5Screate_simple(1, &count, nullptr)), H5Sclose);
    const Hdf5Handle dataset(checked(H5Dcreate2(file_.id(), name.c_str(), stored.type, space.id(),
                                                H5P_DEFAULT, creation.id(), H5P_DEFAULT)),
                             H5Dclose);
    checked(H5Dwrite(dataset.id(), H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()));
  }

  void attribute(const std::string& name, int64_t value, hid_t type = H5T_STD_I64LE) {
    const Hdf5Handle space(checked(H5Screate(H5S_SCALAR)), H5Sclose);
    const Hdf5Handle attribute(
        checked(H5Acreate2(file_.id(), name.c_str(), type, space.id(), H5P_DEFAULT, H5P_DEFAULT)),
        H5Aclose);
    checked(H5Awrite(attribute.id(), H5T_NATIVE_INT64, &value));
  }

 private:
  Hdf5Handle file_;
};

// As h5py writes a str: variable length, UTF-8.
inline void write_text_attribute(hid_t file, const std::string& name, const std::string& text) {
  const Hdf5Handle type(checked(H5Tcopy(H5T_C_S1)), H5Tclose);
  H5Tset_size(type.id(), H5T_VARIABLE);
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  const Hdf5Handle space(checked(H5Screate(H5S_SCALAR)), H5Sclose);
  const Hdf5Handle attribute(
      checked(H5Acreate2(file, name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT)),
      H5Aclose);
  const char* bytes = text.c_str();
  checked(H5Awrite(attribute.id(), type.id(), &bytes));
}

inline void write_token_data_set(const std::string& path, const TokenDataSet& data,
                                 const StoredAs& stored = {}) {
  TokenFileWriter writer(path);
  writer.dataset("tokens", {data.tokens.begin(), data.tokens.end()}, stored);
  writer.dataset("offsets", data.offsets, stored);
  writer.dataset("loss_mask", {data.loss_mask.begin(), data.loss_mask.end()}, stored);
  writer.attribute("format_version", 1);
  writer.attribute("vocab_size", data.vocab_size);
}

// Documents of these lengths; token i of the set is i % vocab_size, every token is a target.
inline TokenDataSet make_token_data_set(const std::vector<int64_t>& lengths,
                                        int64_t vocab_size = 100) {
  TokenDataSet data;
  data.path = "in memory";
  data.vocab_size = vocab_size;
  data.offsets = {0};
  for (const int64_t length : lengths) data.offsets.push_back(data.offsets.back() + length);
  for (int64_t i = 0; i < data.offsets.back(); ++i)
    data.tokens.push_back(static_cast<int32_t>(i % vocab_size));
  data.loss_mask.assign(data.tokens.size(), 1);
  return data;
}

// Three documents, the second empty.
inline TokenDataSet small_token_data_set() {
  TokenDataSet data = make_token_data_set({5, 0, 4});
  data.tokens = {0, 99, 2, 3, 4, 50, 60, 70, 80};
  data.loss_mask = {0, 0, 1, 1, 1, 0, 1, 0, 1};
  return data;
}

// Random lengths in [0, longest], random tokens, and a mask that leaves some documents without a
// target.
inline TokenDataSet random_token_data_set(int64_t n_documents, int64_t longest, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> lengths(n_documents);
  for (int64_t& length : lengths) length = static_cast<int64_t>(random() % (longest + 1));
  TokenDataSet data = make_token_data_set(lengths);
  for (int32_t& token : data.tokens) token = static_cast<int32_t>(random() % data.vocab_size);
  for (int64_t d = 0; d < n_documents; ++d) {
    const uint64_t one_in = random() % 4 == 0 ? 20 : 2;
    for (int64_t i = data.offsets[d]; i < data.offsets[d + 1]; ++i)
      data.loss_mask[i] = random() % one_in == 0;
  }
  return data;
}

}  // namespace utrain::test
