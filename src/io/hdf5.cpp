#include "io/hdf5.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace utrain {

namespace {

herr_t keep_innermost(unsigned n, const H5E_error2_t* error, void* reason) {
  if (n == 0 && error->desc) *static_cast<std::string*>(reason) = error->desc;
  return 0;
}

std::string class_name(H5T_class_t type) {
  switch (type) {
    case H5T_INTEGER: return "integers";
    case H5T_FLOAT: return "floating-point numbers";
    case H5T_STRING: return "strings";
    case H5T_COMPOUND: return "compounds";
    case H5T_ENUM: return "an enumeration (as h5py stores bool)";
    case H5T_VLEN: return "lists of varying length";
    case H5T_ARRAY: return "arrays";
    default: return "no integers";
  }
}

}  // namespace

std::string hdf5_reason() {
  std::string reason;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, &reason);
  for (char& c : reason)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return reason.empty() ? "HDF5 gives no reason" : reason;
}

// HDF5 keeps both settings inside the library; setting them again is cheap.
void hdf5_quiet_and_without_plugins() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  H5PLset_loading_state(0);
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

Hdf5Reader::Hdf5Reader(const std::string& path, Hdf5Faults faults)
    : path_(path), faults_(std::move(faults)) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) {
    const int error = errno;
    const bool missing = error == ENOENT || error == ENOTDIR;
    fail(missing ? faults_.missing : faults_.damaged, path,
         missing ? "no such file" : std::strerror(error),
         remedy("check the path and its permissions"));
  }
  // Opening a pipe would wait for its writer.
  if (!S_ISREG(status.st_mode))
    fail(faults_.damaged, path, "not a regular file, an HDF5 file wanted", remedy("give a file"));
  if (::access(path.c_str(), R_OK) != 0)
    fail(faults_.damaged, path, std::strerror(errno), "make the file readable");
  file_size_ = status.st_size;

  hdf5_quiet_and_without_plugins();
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // Many ranks read at once, and parallel file systems often refuse locks.
  H5Pset_file_locking(access.id(), false, true);
  file_ = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), H5Fclose);
  if (!file_.valid())
    fail(faults_.damaged, path, fmt::format("not a readable HDF5 file ({})", hdf5_reason()),
         remedy("it is damaged, incomplete or something else: make it from JSON lines with "
                "tools/prepare"));
}

const std::string& Hdf5Reader::remedy(const std::string& of_fault) const {
  return faults_.remedy.empty() ? of_fault : faults_.remedy;
}

void Hdf5Reader::refuse(const std::string& object, const std::string& what,
                        const std::string& of_fault) const {
  fail(faults_.damaged, path_, fmt::format("{} {}", object, what), remedy(of_fault));
}

Hdf5Handle Hdf5Reader::open_dataset(const std::string& name) const {
  const std::string object = "/" + name;
  const htri_t exists = H5Lexists(file_.id(), name.c_str(), H5P_DEFAULT);
  if (exists < 0)
    refuse(object, "cannot be looked up: " + hdf5_reason(), "the file is damaged: make it again");
  if (exists == 0) refuse(object, "is missing, a dataset wanted", "make the file again");
  H5L_info_t link;
  if (H5Lget_info(file_.id(), name.c_str(), &link, H5P_DEFAULT) < 0 || link.type != H5L_TYPE_HARD)
    refuse(object, "is a soft or external link, a dataset of this file wanted",
           "copy the data into the file (h5repack)");

  const Hdf5Handle any(H5Oopen(file_.id(), name.c_str(), H5P_DEFAULT), H5Oclose);
  if (!any.valid())
    refuse(object, "cannot be opened: " + hdf5_reason(), "the file is damaged: make it again");
  if (H5Iget_type(any.id()) != H5I_DATASET)
    refuse(object, "is no dataset", "store the numbers in a dataset of this name");
  Hdf5Handle dataset(H5Dopen2(file_.id(), name.c_str(), H5P_DEFAULT), H5Dclose);
  const Hdf5Handle creation(dataset.valid() ? H5Dget_create_plist(dataset.id()) : H5I_INVALID_HID,
                            H5Pclose);
  if (!creation.valid())
    refuse(object, "cannot be opened: " + hdf5_reason(), "the file is damaged: make it again");

  if (H5Pget_layout(creation.id()) == H5D_VIRTUAL)
    refuse(object, "is a virtual dataset", "copy the data into the file (h5repack)");
  if (H5Pget_external_count(creation.id()) != 0)
    refuse(object, "keeps its data in another file", "copy the data into the file (h5repack)");
  for (int i = 0; i < H5Pget_nfilters(creation.id()); ++i) {
    size_t n_values = 0;
    char label[64] = "";
    const H5Z_filter_t filter = H5Pget_filter2(creation.id(), static_cast<unsigned>(i), nullptr,
                                               &n_values, nullptr, sizeof label, label, nullptr);
    const bool known = filter == H5Z_FILTER_DEFLATE || filter == H5Z_FILTER_SHUFFLE ||
                       filter == H5Z_FILTER_FLETCHER32;
    if (!known)
      refuse(object,
             fmt::format("uses filter {}, only deflate, shuffle, fletcher32 are read",
                         static_cast<int>(filter)),
             "write it with gzip or without compression (h5repack -f GZIP=4)");
  }
  return dataset;
}

std::vector<int64_t> Hdf5Reader::shape(const std::string& name, H5T_class_t wanted,
                                       int rank) const {
  const std::string words = wanted == H5T_INTEGER ? "integers" : "float32";
  const Hdf5Handle dataset = open_dataset(name);
  const std::string object = "/" + name;
  const Hdf5Handle type(H5Dget_type(dataset.id()), H5Tclose);
  if (!type.valid())
    refuse(object, "has an unreadable type: " + hdf5_reason(), "make the file again");
  const H5T_class_t type_class = H5Tget_class(type.id());
  if (type_class != wanted)
    refuse(object, fmt::format("holds {}, {} wanted", class_name(type_class), words),
           wanted == H5T_INTEGER ? "write it with an integer type" : "write it as float32");
  const size_t bytes = H5Tget_size(type.id());
  if (wanted == H5T_INTEGER && bytes > 8)
    refuse(object, fmt::format("holds integers of {} bytes, at most 8 wanted", bytes),
           "write it with a smaller type");
  if (wanted == H5T_FLOAT && H5Tequal(type.id(), H5T_IEEE_F32LE) <= 0)
    refuse(object, fmt::format("holds other numbers of {} bytes, float32 wanted", bytes),
           "write it as float32");

  const Hdf5Handle space(H5Dget_space(dataset.id()), H5Sclose);
  const int found = space.valid() ? H5Sget_simple_extent_ndims(space.id()) : -1;
  if (found != rank)
    refuse(object, fmt::format("has {} dimensions, {} wanted", found, rank),
           rank == 1 ? "write it as a plain list" : "write it as a table");
  std::vector<hsize_t> extent(static_cast<size_t>(rank));
  H5Sget_simple_extent_dims(space.id(), extent.data(), nullptr);
  // Deflate packs at most about 1000 to 1: more than that was never written, and would only fill
  // memory.
  hsize_t left = static_cast<hsize_t>(file_size_) * 1000;
  for (const hsize_t n : extent) {
    if (n > left)
      refuse(object, fmt::format("claims {} values in a file of {} bytes", n, file_size_),
             "the file is damaged or incomplete: make it again");
    if (n > 0) left /= n;
  }
  return {extent.begin(), extent.end()};
}

int64_t Hdf5Reader::integer_count(const std::string& name) const {
  return shape(name, H5T_INTEGER, 1)[0];
}

int64_t Hdf5Reader::integer_rows(const std::string& name, int64_t columns) const {
  const std::vector<int64_t> found = shape(name, H5T_INTEGER, 2);
  if (found[1] != columns)
    refuse("/" + name, fmt::format("has {} columns, {} wanted", found[1], columns),
           "make the file again");
  return found[0];
}

int64_t Hdf5Reader::float_count(const std::string& name) const {
  return shape(name, H5T_FLOAT, 1)[0];
}

void Hdf5Reader::read_floats(const std::string& name, int64_t begin, int64_t n,
                             float* values) const {
  if (n == 0) return;
  const Hdf5Handle dataset = open_dataset(name);
  const Hdf5Handle space(H5Dget_space(dataset.id()), H5Sclose);
  const hsize_t first = static_cast<hsize_t>(begin), count = static_cast<hsize_t>(n);
  const Hdf5Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose);
  if (H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, &first, nullptr, &count, nullptr) < 0 ||
      H5Dread(dataset.id(), H5T_NATIVE_FLOAT, memory.id(), space.id(), H5P_DEFAULT, values) < 0)
    refuse("/" + name, "cannot be read: " + hdf5_reason(), "the file is damaged: make it again");
}

void Hdf5Reader::read(const std::string& name, hid_t type, void* values) const {
  const Hdf5Handle dataset = open_dataset(name);
  if (H5Dread(dataset.id(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0)
    refuse("/" + name, "cannot be read: " + hdf5_reason(), "the file is damaged: make it again");
}

void Hdf5Reader::read_integers(const std::string& name, int8_t* values) const {
  read(name, H5T_NATIVE_INT8, values);
}
void Hdf5Reader::read_integers(const std::string& name, int32_t* values) const {
  read(name, H5T_NATIVE_INT32, values);
}
void Hdf5Reader::read_integers(const std::string& name, int64_t* values) const {
  read(name, H5T_NATIVE_INT64, values);
}

Hdf5Reader::Attribute Hdf5Reader::open_attribute(const std::string& name) const {
  const std::string object = "attribute " + name;
  const htri_t exists = H5Aexists(file_.id(), name.c_str());
  if (exists < 0)
    refuse(object, "cannot be looked up: " + hdf5_reason(), "the file is damaged: make it again");
  if (exists == 0) return {};
  Attribute a;
  a.attribute = Hdf5Handle(H5Aopen(file_.id(), name.c_str(), H5P_DEFAULT), H5Aclose);
  if (a.attribute.valid()) {
    a.type = Hdf5Handle(H5Aget_type(a.attribute.id()), H5Tclose);
    a.space = Hdf5Handle(H5Aget_space(a.attribute.id()), H5Sclose);
  }
  if (!a.type.valid() || !a.space.valid())
    refuse(object, "cannot be opened: " + hdf5_reason(), "the file is damaged: make it again");
  return a;
}

int64_t Hdf5Reader::integer_attribute(const std::string& name) const {
  const std::string object = "attribute " + name;
  const auto [attribute, type, space] = open_attribute(name);
  if (!attribute.valid()) refuse(object, "of the root group is missing", "write it: one integer");
  if (H5Tget_class(type.id()) != H5T_INTEGER || H5Tget_size(type.id()) > 8)
    refuse(object, "is not an integer of at most 8 bytes", "write it as one integer");
  if (H5Sget_simple_extent_npoints(space.id()) != 1)
    refuse(object, fmt::format("has {} values, 1 wanted", H5Sget_simple_extent_npoints(space.id())),
           "write it as one integer");
  int64_t value = 0;
  if (H5Aread(attribute.id(), H5T_NATIVE_INT64, &value) < 0)
    refuse(object, "cannot be read: " + hdf5_reason(), "the file is damaged: make it again");
  return value;
}

std::string Hdf5Reader::text_attribute_or_empty(const std::string& name) const {
  constexpr size_t kMostBytes = 4096;
  const std::string object = "attribute " + name;
  const auto [attribute, type, space] = open_attribute(name);
  if (!attribute.valid()) return "";
  if (H5Tget_class(type.id()) != H5T_STRING || H5Sget_simple_extent_npoints(space.id()) != 1)
    refuse(object, "is not one text", "write it as one string");

  std::string text;
  if (H5Tis_variable_str(type.id()) > 0) {
    char* bytes = nullptr;
    if (H5Aread(attribute.id(), type.id(), &bytes) < 0)
      refuse(object, "cannot be read: " + hdf5_reason(), "the file is damaged: make it again");
    if (bytes != nullptr) text.assign(bytes, ::strnlen(bytes, kMostBytes + 1));
    H5free_memory(bytes);
  } else {
    text.resize(std::min(H5Tget_size(type.id()), kMostBytes + 1));
    if (text.size() <= kMostBytes && H5Aread(attribute.id(), type.id(), text.data()) < 0)
      refuse(object, "cannot be read: " + hdf5_reason(), "the file is damaged: make it again");
    if (text.size() <= kMostBytes) text.resize(::strnlen(text.data(), text.size()));
  }
  if (text.size() > kMostBytes)
    refuse(object, fmt::format("is longer than {} bytes", kMostBytes), "make the file again");
  return text;
}

}  // namespace utrain
