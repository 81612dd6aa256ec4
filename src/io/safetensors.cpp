#include "io/safetensors.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "core/convert.h"
#include "io/json.h"

namespace utrain {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kMaxTensors = 100'000;  // the largest model that we train has 13,000
constexpr int64_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 512;
constexpr std::string_view kRepair = "the file is damaged or not safetensors: fetch it again";

struct DTypeRow {
  FileDType dtype;
  std::string_view name;
  int64_t bits;
};
constexpr std::array<DTypeRow, 22> kDTypes = {{
    {FileDType::boolean, "BOOL", 8},
    {FileDType::f4, "F4", 4},
    {FileDType::f6_e2m3, "F6_E2M3", 6},
    {FileDType::f6_e3m2, "F6_E3M2", 6},
    {FileDType::u8, "U8", 8},
    {FileDType::i8, "I8", 8},
    {FileDType::f8_e5m2, "F8_E5M2", 8},
    {FileDType::f8_e4m3, "F8_E4M3", 8},
    {FileDType::f8_e8m0, "F8_E8M0", 8},
    {FileDType::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
    {FileDType::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    {FileDType::i16, "I16", 16},
    {FileDType::u16, "U16", 16},
    {FileDType::f16, "F16", 16},
    {FileDType::bf16, "BF16", 16},
    {FileDType::i32, "I32", 32},
    {FileDType::u32, "U32", 32},
    {FileDType::f32, "F32", 32},
    {FileDType::c64, "C64", 64},
    {FileDType::f64, "F64", 64},
    {FileDType::i64, "I64", 64},
    {FileDType::u64, "U64", 64},
}};

std::optional<FileDType> dtype_named(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

// Checks a header against the size of its file and lists the tensors; reads no data.
class HeaderReader {
 public:
  explicit HeaderReader(const MappedFile& file) : file_(file), path_(file.path()) {
    if (file.size() < 8) {
      refuse(fmt::format("{} bytes found, at least 8 wanted", file.size()));
    }
    constexpr std::string_view kPointer = "version https://git-lfs";
    if (file.size() >= static_cast<int64_t>(kPointer.size()) &&
        std::memcmp(file.data(), kPointer.data(), kPointer.size()) == 0) {
      fail(ExitCode::bad_file, path_, "a Git LFS pointer found, the file itself wanted",
           "run: git lfs pull");
    }
    uint64_t n = 0;
    std::memcpy(&n, file.data(), 8);
    if (n > static_cast<uint64_t>(kMaxHeaderBytes)) {
      refuse(fmt::format("header of {} bytes found, at most {} wanted", n, kMaxHeaderBytes));
    }
    data_begin_ = 8 + static_cast<int64_t>(n);
    if (data_begin_ > file.size()) {
      refuse(fmt::format("header of {} bytes found in a file of {} bytes", n, file.size()));
    }
    header_ = {reinterpret_cast<const char*>(file.data()) + 8, static_cast<size_t>(n)};
    if (!header_.starts_with('{')) refuse("header byte 0: '{' wanted");
  }

  void read(std::map<std::string, StoredTensor>& tensors,
            std::map<std::string, std::string>& metadata) {
    // A tensor takes at most 15 values: the object, its dtype, two arrays, 8 sizes, 2 offsets.
    const JsonLimits limits = {.depth = 3, .values = 15 * kMaxTensors};
    const Json header = parse_json(header_, path_ + ": header", ExitCode::bad_file, limits);
    if (static_cast<int64_t>(header.as_object().size()) > kMaxTensors) {
      refuse(fmt::format("{} tensors found, at most {} wanted", header.as_object().size(),
                         kMaxTensors));
    }
    for (const auto& [name, value] : header.as_object()) {
      if (name == "__metadata__") {
        read_metadata(value, metadata);
      } else {
        check_name(name);
        StoredTensor tensor = read_tensor(name, value);
        tensors.emplace(name, std::move(tensor));
      }
    }
    check_contiguous(tensors);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(ExitCode::bad_file, path_, what, kRepair);
  }

  [[noreturn]] void refuse_tensor(const std::string& name, std::string_view what) const {
    const size_t position = header_.find(to_text(Json(name)) + ":");
    const std::string place = position == std::string_view::npos
                                  ? std::string()
                                  : fmt::format(" (header byte {})", position);
    fail(ExitCode::bad_file, fmt::format("{}: tensor {}{}", path_, name, place), what, kRepair);
  }

  void read_metadata(const Json& value, std::map<std::string, std::string>& metadata) const {
    if (value.is_null()) return;
    const std::string where = path_ + ": header: __metadata__";
    const JsonObjectReader reader(value, where);
    for (const auto& [key, text] : value.as_object()) {
      if (!text.is_string()) {
        fail(ExitCode::bad_file, where,
             fmt::format("key {} is {}, strings wanted", describe(Json(key)), describe(text)),
             kRepair);
      }
      metadata.emplace(key, text.as_string());
    }
  }

  void check_name(const std::string& name) const {
    if (name.size() > kMaxNameBytes) {
      refuse(fmt::format("header: name of {} bytes found ({}), at most {} wanted", name.size(),
                         describe(Json(name)), kMaxNameBytes));
    }
    const bool control = std::any_of(name.begin(), name.end(), [](char c) {
      return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    });
    if (control) {
      refuse(fmt::format("header: control character found in name {}", to_text(Json(name))));
    }
  }

  int64_t read_size(const std::string& name, const char* key, const Json& value) const {
    // Only an integer token will do: 4.0, 1e3, -1 and 2^63 are refused.
    if (!value.is_integer() || value.is_large_integer() || value.as_int64() < 0) {
      refuse_tensor(name, fmt::format("{}: {} found, an integer from 0 to 2^63 - 1 wanted", key,
                                      describe(value)));
    }
    return value.as_int64();
  }

  const Json::Array& read_array(const std::string& name, const char* key, const Json* value) const {
    if (value == nullptr) refuse_tensor(name, fmt::format("{} is missing", key));
    if (!value->is_array()) {
      refuse_tensor(name, fmt::format("{}: {} found, an array wanted", key, describe(*value)));
    }
    return value->as_array();
  }

  StoredTensor read_tensor(const std::string& name, const Json& value) const {
    if (!value.is_object()) {
      refuse_tensor(name, fmt::format("{} found, an object wanted", describe(value)));
    }
    for (const auto& member : value.as_object()) {
      const std::string& key = member.first;
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        refuse_tensor(name, fmt::format("unknown key {} found", describe(Json(key))));
      }
    }
    StoredTensor tensor;
    tensor.name = name;
    tensor.dtype = read_dtype(name, value.find("dtype"));
    const Json::Array& shape = read_array(name, "shape", value.find("shape"));
    if (static_cast<int64_t>(shape.size()) > kMaxRank) {
      refuse_tensor(name,
                    fmt::format("{} dimensions found, at most {} wanted", shape.size(), kMaxRank));
    }
    for (const Json& size : shape) tensor.shape.push_back(read_size(name, "shape", size));

    const Json::Array& offsets = read_array(name, "data_offsets", value.find("data_offsets"));
    if (offsets.size() != 2) {
      refuse_tensor(name, fmt::format("data_offsets: {} numbers found, 2 wanted", offsets.size()));
    }
    const int64_t begin = read_size(name, "data_offsets", offsets[0]);
    const int64_t end = read_size(name, "data_offsets", offsets[1]);
    const int64_t data_bytes = file_.size() - data_begin_;
    if (end < begin || end > data_bytes) {
      refuse_tensor(name, fmt::format("data_offsets [{}, {}] found, a range inside {} bytes of "
                                      "data wanted",
                                      begin, end, data_bytes));
    }
    tensor.bytes = bytes_of_shape(tensor);
    if (end - begin != tensor.bytes) {
      refuse_tensor(name,
                    fmt::format("{} bytes found, {} wanted for {} {}", end - begin, tensor.bytes,
                                name_of(tensor.dtype), text_of_shape(tensor.shape)));
    }
    tensor.data = file_.data() + data_begin_ + begin;
    return tensor;
  }

  FileDType read_dtype(const std::string& name, const Json* value) const {
    if (value == nullptr) refuse_tensor(name, "dtype is missing");
    const std::optional<FileDType> dtype =
        value->is_string() ? dtype_named(value->as_string()) : std::nullopt;
    if (!dtype) refuse_tensor(name, fmt::format("unknown dtype found: {}", describe(*value)));
    return *dtype;
  }

  int64_t bytes_of_shape(const StoredTensor& tensor) const {
    int64_t bits = bits_of(tensor.dtype);
    bool overflow = false;
    int64_t n = 1;
    for (const int64_t size : tensor.shape) overflow |= __builtin_mul_overflow(n, size, &n);
    overflow = overflow || __builtin_mul_overflow(n, bits, &bits);
    if (overflow) {
      refuse_tensor(tensor.name, fmt::format("shape {} of {} is larger than 2^63 bits",
                                             text_of_shape(tensor.shape), name_of(tensor.dtype)));
    }
    if (bits % 8 != 0) {
      refuse_tensor(tensor.name, fmt::format("shape {} of {} does not fill whole bytes",
                                             text_of_shape(tensor.shape), name_of(tensor.dtype)));
    }
    return bits / 8;
  }

  // The tensors fill the data without holes, overlap or tail.
  void check_contiguous(const std::map<std::string, StoredTensor>& tensors) const {
    std::vector<const StoredTensor*> order;
    order.reserve(tensors.size());
    for (const auto& entry : tensors) order.push_back(&entry.second);
    std::sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
      return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
    });
    const std::byte* const data = file_.data() + data_begin_;
    int64_t end = 0;
    for (const StoredTensor* tensor : order) {
      const int64_t begin = tensor->data - data;
      if (begin != end) {
        refuse_tensor(tensor->name, fmt::format("data_offsets begin at {}, {} wanted ({})", begin,
                                                end, begin < end ? "overlap" : "hole"));
      }
      end += tensor->bytes;
    }
    if (data_begin_ + end != file_.size()) {
      refuse(fmt::format("{} bytes found, {} wanted: {} after the last tensor", file_.size(),
                         data_begin_ + end, file_.size() - data_begin_ - end));
    }
  }

  const MappedFile& file_;
  const std::string& path_;
  std::string_view header_;
  int64_t data_begin_ = 0;
};

template <class Bits>
Bits load(const std::byte* p) {
  Bits bits;
  std::memcpy(&bits, p, sizeof(Bits));
  return bits;
}

float float_of_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Moves exponent and mantissa into place and multiplies by 2^(127 - 15): right for subnormals too,
// without a branch.
float float_of_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7FFFu) << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) * 0x1p112f);
  const uint32_t special = rest | 0x7F800000u;  // infinity and NaN keep their mantissa
  return std::bit_cast<float>(sign | (rest < 0x0F800000u ? finite : special));
}

template <class Out>
void convert_elements(const StoredTensor& tensor, int64_t first, int64_t n, Out* out) {
  ASSERT(is_readable(tensor.dtype));
  ASSERT(first >= 0 && n >= 0 && first <= tensor.n_elem() - n);
  const int64_t size = bits_of(tensor.dtype) / 8;
  const std::byte* in = tensor.data + first * size;
  switch (tensor.dtype) {
    case FileDType::bf16:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = Out(float_of_bf16(load<uint16_t>(in + 2 * i)));
      return;
    case FileDType::f16:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = Out(float_of_f16(load<uint16_t>(in + 2 * i)));
      return;
    case FileDType::f32:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = Out(load<float>(in + 4 * i));
      return;
    default:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = Out(load<double>(in + 8 * i));
      return;
  }
}

bool is_stored_as(const StoredTensor& tensor, DType dtype) {
  switch (dtype) {
    case DType::f32: return tensor.dtype == FileDType::f32;
    case DType::bf16: return tensor.dtype == FileDType::bf16;
    case DType::f16: return tensor.dtype == FileDType::f16;
    case DType::f64: return tensor.dtype == FileDType::f64;
    case DType::c128: return false;
  }
  return false;
}

}  // namespace

std::string_view name_of(FileDType dtype) {
  return kDTypes[static_cast<size_t>(dtype)].name;
}
int64_t bits_of(FileDType dtype) {
  return kDTypes[static_cast<size_t>(dtype)].bits;
}

bool is_readable(FileDType dtype) {
  return dtype == FileDType::f32 || dtype == FileDType::bf16 || dtype == FileDType::f16 ||
         dtype == FileDType::f64;
}

int64_t StoredTensor::n_elem() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

std::string text_of_shape(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

SafetensorsFile::SafetensorsFile(const std::string& path, ExitCode missing) : file_(path, missing) {
  HeaderReader(file_).read(tensors_, metadata_);
}

const StoredTensor* SafetensorsFile::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

void read_elements(const StoredTensor& tensor, int64_t first, int64_t n, float* out) {
  if (tensor.dtype == FileDType::f32) return read_elements(tensor, first, n, DType::f32, out);
  convert_elements(tensor, first, n, out);
}

void read_elements(const StoredTensor& tensor, int64_t first, int64_t n, double* out) {
  convert_elements(tensor, first, n, out);
}

void read_elements(const StoredTensor& tensor, int64_t first, int64_t n, DType dtype, void* out) {
  ASSERT(first >= 0 && n >= 0 && first <= tensor.n_elem() - n);
  if (n == 0) return;
  const int64_t size = size_of(dtype);
  if (is_stored_as(tensor, dtype)) {
    std::memcpy(out, tensor.data + size * first, static_cast<size_t>(size * n));
    return;
  }
  if (dtype == DType::f32) return convert_elements(tensor, first, n, static_cast<float*>(out));
  constexpr int64_t kPiece = 2048;  // elements: float32 on the way that stay in the cache
  float values[kPiece];
  for (int64_t done = 0; done < n; done += kPiece) {
    const int64_t here = std::min(kPiece, n - done);
    convert_elements(tensor, first + done, here, values);
    from_float(dtype, values, here, static_cast<char*>(out) + size * done);
  }
}

void prefetch_elements(const StoredTensor& tensor, int64_t first, int64_t n) {
  ASSERT(first >= 0 && n >= 0 && first <= tensor.n_elem() - n);
  if (n == 0) return;
  const int64_t size = bits_of(tensor.dtype) / 8;
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data + first * size) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(tensor.data + (first + n) * size);
  // A hint: where the system does not take it, reading is slower and no less right.
  (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

}  // namespace utrain
