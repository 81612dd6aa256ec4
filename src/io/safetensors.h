// safetensors: u64 little-endian N | N bytes of JSON header | data, row-major and little-endian.
//   https://github.com/huggingface/safetensors. The header is not trusted: every rule of the
//   reference reader is checked (no holes, no overlap, no tail, no duplicate) and sizes are bounded
//   before anything is allocated. Data may lie at any byte: copy it out, never cast the pointer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "io/file.h"

namespace utrain {

enum class FileDType : uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64
};
std::string_view name_of(FileDType dtype);  // as in the header: "BF16"
int64_t bits_of(FileDType dtype);
bool is_readable(FileDType dtype);  // f32, bf16, f16, f64: those read_elements converts

struct StoredTensor {
  std::string name;
  FileDType dtype = FileDType::f32;
  std::vector<int64_t> shape;       // {} is a scalar
  const std::byte* data = nullptr;  // into the mapping of its file, unaligned
  int64_t bytes = 0;
  int64_t n_elem() const;
};

std::string text_of_shape(const std::vector<int64_t>& shape);  // "[2, 3]"

// One file, mapped while the object lives. Malformed: bad_file; missing: as told.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path, ExitCode missing = ExitCode::usage);

  const StoredTensor* find(const std::string& name) const;  // nullptr where absent
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return file_.path(); }

 private:
  MappedFile file_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// out[0, n) = elements [first, first + n) of the flattened tensor. f32 from F32, BF16, F16 is
// exact; from F64 rounded to nearest. is_readable(dtype), and the range lies inside the tensor.
void read_elements(const StoredTensor& tensor, int64_t first, int64_t n, float* out);
void read_elements(const StoredTensor& tensor, int64_t first, int64_t n, double* out);
// The same in any dtype: the stored bytes where that is the tensor's own, else rounded from f32 to
// nearest even.
void read_elements(const StoredTensor& tensor, int64_t first, int64_t n, DType dtype, void* out);
// The system starts to read these elements from the disk, and does not wait for them.
void prefetch_elements(const StoredTensor& tensor, int64_t first, int64_t n);

// Declare every tensor, then stream their data, then commit(). Tensors may be written in any order
// and in pieces; the file has them by dtype size (largest first), then name, under metadata
// {"format": "pt"}. Until commit() the path is untouched, and a writer destroyed earlier leaves
// nothing. Failures: Error(io).
class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(const std::string& path, FileSign sign = {});

  void declare(const std::string& name, FileDType dtype, const std::vector<int64_t>& shape);
  void write(const std::string& name, const void* data, int64_t bytes);  // appends to this tensor
  void commit();  // every tensor must be complete

 private:
  struct Entry {
    FileDType dtype;
    std::vector<int64_t> shape;
    int64_t bytes = 0, written = 0, offset = 0;  // offset from the start of the file
  };
  void write_header();

  AtomicFile file_;
  std::map<std::string, Entry> entries_;
  bool header_written_ = false;
};

}  // namespace utrain
