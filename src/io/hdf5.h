// HDF5 handles that close themselves, and the checks that a file from elsewhere must pass before it
// is read. Serial C API; its own error printing is off, and its reason appears in our one-line
// messages instead. A dataset is opened only over hard links, with its bytes in the same file and
// no filters but deflate, shuffle and fletcher32, so that reading a file never opens another one or
// loads a plugin.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace utrain {

class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);

  Hdf5Handle() = default;
  Hdf5Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept
      : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Hdf5Handle() {
    if (id_ >= 0) close_(id_);
  }

  // Where it fails, the handle stays open.
  herr_t close() {
    const herr_t closed = id_ >= 0 ? close_(id_) : 0;
    if (closed >= 0) id_ = H5I_INVALID_HID;
    return closed;
  }
  bool valid() const { return id_ >= 0; }
  hid_t id() const { return id_; }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

// Why the last HDF5 call of this thread failed, in one line.
std::string hdf5_reason();
std::string hdf5_version();  // of the library in use, "1.10.8"
// Of this thread: no error printing; of the library: no plugins.
void hdf5_quiet_and_without_plugins();

// How a reader fails: codes where nothing is there, and where something is wrong; where it is not
// empty, one remedy for all faults.
struct Hdf5Faults {
  ExitCode missing = ExitCode::usage, damaged = ExitCode::bad_file;
  std::string remedy;
};

// An HDF5 file open for reading. Every function fails with faults.damaged, the path and the
// object's name.
class Hdf5Reader {
 public:
  explicit Hdf5Reader(const std::string& path, Hdf5Faults faults = {});

  const std::string& path() const { return path_; }
  int64_t file_size() const { return file_size_; }  // bytes

  // Length of /name, which must be a dataset of integers of rank 1.
  int64_t integer_count(const std::string& name) const;
  // All of /name, integer_count(name) values. Values that do not fit the signed type are clipped to
  // its ends.
  void read_integers(const std::string& name, int8_t* values) const;
  void read_integers(const std::string& name, int32_t* values) const;
  void read_integers(const std::string& name, int64_t* values) const;
  // Rows of /name, which must be a dataset of integers [rows, columns]; and all of it.
  int64_t integer_rows(const std::string& name, int64_t columns) const;
  // Length of /name, which must be a dataset of float32 of rank 1; and n of its values.
  int64_t float_count(const std::string& name) const;
  void read_floats(const std::string& name, int64_t begin, int64_t n, float* values) const;
  // One integer on the root group.
  int64_t integer_attribute(const std::string& name) const;
  // A text on the root group of at most 4096 bytes, empty where there is none.
  std::string text_attribute_or_empty(const std::string& name) const;

  [[noreturn]] void refuse(const std::string& object, const std::string& what,
                           const std::string& of_fault) const;

 private:
  struct Attribute {
    Hdf5Handle attribute, type, space;
  };
  Attribute open_attribute(const std::string& name) const;  // of the root group; none: not valid
  Hdf5Handle open_dataset(const std::string& name) const;
  const std::string& remedy(const std::string& of_fault) const;
  // [rank] of /name, whose type class and rank must be these.
  std::vector<int64_t> shape(const std::string& name, H5T_class_t wanted, int rank) const;
  void read(const std::string& name, hid_t type, void* values) const;

  std::string path_;
  Hdf5Faults faults_;
  int64_t file_size_ = 0;
  Hdf5Handle file_;
};

}  // namespace utrain
