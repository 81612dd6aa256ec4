// Writes one new HDF5 file (serial C API): metadata of the 1.10 format, which is checksummed, and
// fletcher32 on every chunk. Every failure is Error(io) with path, bytes and the system's reason.
// After the first one nothing more reaches the file: what HDF5 still wants to write when it closes
// goes nowhere, so that it neither waits nor fails. May run on any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/hdf5.h"

namespace utrain {

// A rectangle of a virtual data set, and the run of a 1-D data set in another file that fills it in
// row order.
struct VirtualPiece {
  std::vector<int64_t> begin, count;       // [dimensions] of the rectangle
  std::string file;                        // a plain name: beside the file that is written
  int64_t source_begin = 0, n_source = 0;  // elements; n_source: of the whole 1-D data set
};

class Hdf5Writer {
 public:
  explicit Hdf5Writer(const std::string& path);  // fails where something is there
  ~Hdf5Writer();                                 // without close(): the file is left torn
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  // Of the root group, or of the data set of this name.
  void attribute(const std::string& name, int64_t value, const std::string& object = ".");
  void write(const std::string& name, const float* values, int64_t n_elem);
  // values [rows, columns]
  void write(const std::string& name, const int64_t* values, int64_t rows, int64_t columns);
  // float32 [shape]; source: the data set in the pieces' files. Groups in `name` are made.
  void write_virtual(const std::string& name, const std::vector<int64_t>& shape,
                     const std::string& source, const std::vector<VirtualPiece>& pieces);
  void close();  // the file is synced when this returns

 private:
  void write_chunks(const std::string& name, const std::vector<hsize_t>& shape,
                    const std::vector<hsize_t>& chunk, hid_t in_file, hid_t in_memory,
                    const void* values);
  void need(bool ok, const std::string& what);  // fails with what HDF5 says
  void let_go();

  std::string path_;
  int synced_ = -1;  // of our own, for fsync after HDF5 has closed its
  Hdf5Handle file_;
};

}  // namespace utrain
