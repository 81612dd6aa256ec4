// Writes one new HDF5 file (serial C API): metadata of the 1.10 format, which is checksummed, and
// fletcher32 on every chunk. Every failure is Error(io) with path, bytes and the system's reason,
// and leaves HDF5 in order. Equal values are equal bytes: no times are stored. May run on any
// thread; HDF5's lock is held for 64 MiB at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/hdf5_sink.h"

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
  explicit Hdf5Writer(const std::string& path, FileSign sign = {});  // fails where one is there

  // Of the root group, or of the data set of this name.
  void attribute(const std::string& name, int64_t value, const std::string& object = ".");
  void write(const std::string& name, const float* values, int64_t n_elem);
  // values [rows, columns]
  void write(const std::string& name, const int64_t* values, int64_t rows, int64_t columns);
  void group(const std::string& name);
  // float32 [shape]; source: the data set in the pieces' files.
  void write_virtual(const std::string& name, const std::vector<int64_t>& shape,
                     const std::string& source, const std::vector<VirtualPiece>& pieces);
  void close();  // the file is synced when this returns

 private:
  Hdf5Handle create(const std::string& name, const std::vector<hsize_t>& shape,
                    const std::vector<hsize_t>& chunk, hid_t type);
  void need(bool ok, const std::string& what) const;  // fails with the reason

  std::string path_;
  Hdf5Sink sink_;
  Hdf5Handle file_;  // closed before the sink is
};

}  // namespace utrain
