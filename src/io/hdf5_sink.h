// Where the bytes go that HDF5 writes: a descriptor of ours, through a file driver of ours. After
// the first write that fails, everything is taken and forgotten: HDF5 cannot close a file that it
// cannot flush (it frees half of it, and stumbles over that when the process ends), so it must not
// notice. Whoever writes asks error() instead.
#pragma once

#include <cstdint>
#include <string>

#include "io/file.h"
#include "io/hdf5.h"

namespace utrain {

class Hdf5Sink {
 public:
  explicit Hdf5Sink(const std::string& path, FileSign sign = {});  // a new file; follows no link
  ~Hdf5Sink();
  Hdf5Sink(const Hdf5Sink&) = delete;
  Hdf5Sink& operator=(const Hdf5Sink&) = delete;

  // A file access list that makes H5Fcreate write here, whatever name it is given. The sink must
  // outlive the file.
  Hdf5Handle access();
  // Fails with io where a write has failed: path, bytes, the system's reason.
  void check() const;
  void sync_and_close();

  // For the driver alone; false where something failed.
  bool write(int64_t at, const void* data, size_t bytes);
  bool read(int64_t at, void* data, size_t bytes) const;
  void resize(int64_t bytes);
  int64_t size() const { return size_; }

 private:
  std::string path_;
  FileSign sign_;
  int fd_ = -1;
  int64_t size_ = 0;  // with what was forgotten
  int error_ = 0;
  std::string failed_;  // what
};

}  // namespace utrain
