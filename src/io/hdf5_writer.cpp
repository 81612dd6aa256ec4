#include "io/hdf5_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "io/file.h"

namespace utrain {

namespace {

constexpr int64_t kChunkElems = int64_t{1} << 20;

// HDF5 keeps the system's reason as text alone: "..., errno = 28, error message = ...".
int errno_in(const std::string& reason) {
  const std::string key = "errno = ";
  const size_t at = reason.find(key);
  return at == std::string::npos ? 0 : std::atoi(reason.c_str() + at + key.size());
}

// Even chunks, the last one included: a whole one is stored for it.
int64_t chunk_elems(int64_t n_elem) {
  const int64_t n_chunks = (n_elem + kChunkElems - 1) / kChunkElems;
  return (n_elem + n_chunks - 1) / n_chunks;
}

std::vector<hsize_t> extent(const std::vector<int64_t>& shape) {
  return {shape.begin(), shape.end()};
}

Hdf5Handle simple_space(const std::vector<hsize_t>& shape) {
  return {H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr), H5Sclose};
}

}  // namespace

Hdf5Writer::Hdf5Writer(const std::string& path) : path_(path) {
  hdf5_quiet_and_without_plugins();
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fapl_sec2(access.id());
  H5Pset_libver_bounds(access.id(), H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_file_locking(access.id(), false, true);
  file_ = Hdf5Handle(H5Fcreate(path.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, access.id()), H5Fclose);
  need(file_.valid(), "cannot be created");
  void* descriptor = nullptr;
  need(H5Fget_vfd_handle(file_.id(), H5P_DEFAULT, &descriptor) >= 0, "has no descriptor");
  synced_ = ::fcntl(*static_cast<int*>(descriptor), F_DUPFD_CLOEXEC, 0);
  if (synced_ < 0) {
    const int error = errno;
    let_go();
    fail_io(path, "no second descriptor", error);
  }
}

Hdf5Writer::~Hdf5Writer() {
  if (file_.valid()) let_go();
  if (synced_ >= 0) ::close(synced_);
}

// HDF5 flushes when it closes, and keeps the file open for ever where that fails: what it still
// writes goes into memory that is gone with its descriptor.
void Hdf5Writer::let_go() {
  if (!file_.valid()) return;
  void* descriptor = nullptr;
  const int nowhere = ::memfd_create("utrain", MFD_CLOEXEC);
  if (nowhere >= 0 && H5Fget_vfd_handle(file_.id(), H5P_DEFAULT, &descriptor) >= 0)
    ::dup2(nowhere, *static_cast<int*>(descriptor));
  if (nowhere >= 0) ::close(nowhere);
}

void Hdf5Writer::need(bool ok, const std::string& what) {
  if (ok) return;
  const std::string reason = hdf5_reason();
  let_go();
  if (const int error = errno_in(reason); error != 0) fail_io(path_, what, error);
  fail(ExitCode::io, path_, fmt::format("{} ({})", what, reason),
       "check free space, quota and permissions of its directory");
}

void Hdf5Writer::attribute(const std::string& name, int64_t value, const std::string& object) {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Hdf5Handle attribute(
      H5Acreate_by_name(file_.id(), object.c_str(), name.c_str(), H5T_STD_I64LE, space.id(),
                        H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
      H5Aclose);
  need(attribute.valid() && H5Awrite(attribute.id(), H5T_NATIVE_INT64, &value) >= 0,
       fmt::format("writing attribute {} of 8 bytes failed", name));
}

void Hdf5Writer::write_chunks(const std::string& name, const std::vector<hsize_t>& shape,
                              const std::vector<hsize_t>& chunk, hid_t in_file, hid_t in_memory,
                              const void* values) {
  hsize_t n_elem = 1;
  for (const hsize_t n : shape) n_elem *= n;
  const Hdf5Handle space = simple_space(shape);
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const Hdf5Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  if (n_elem > 0) {
    H5Pset_chunk(creation.id(), static_cast<int>(chunk.size()), chunk.data());
    H5Pset_fletcher32(creation.id());
    H5Pset_fill_time(creation.id(), H5D_FILL_TIME_NEVER);
    // No cache: each chunk is written, or fails, in H5Dwrite.
    H5Pset_chunk_cache(access.id(), 1, 0, 0.0);
  }
  const std::string what =
      fmt::format("writing {}, {} bytes, failed", name, n_elem * H5Tget_size(in_file));
  Hdf5Handle dataset(H5Dcreate2(file_.id(), name.c_str(), in_file, space.id(), H5P_DEFAULT,
                                creation.id(), access.id()),
                     H5Dclose);
  need(dataset.valid(), what);
  if (n_elem > 0)
    need(H5Dwrite(dataset.id(), in_memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0, what);
}

void Hdf5Writer::write(const std::string& name, const float* values, int64_t n_elem) {
  const hsize_t n = static_cast<hsize_t>(n_elem);
  write_chunks(name, {n}, {n == 0 ? 0 : static_cast<hsize_t>(chunk_elems(n_elem))}, H5T_IEEE_F32LE,
               H5T_NATIVE_FLOAT, values);
}

void Hdf5Writer::write(const std::string& name, const int64_t* values, int64_t rows,
                       int64_t columns) {
  const std::vector<hsize_t> shape = extent({rows, columns});
  write_chunks(name, shape, shape, H5T_STD_I64LE, H5T_NATIVE_INT64, values);
}

void Hdf5Writer::write_virtual(const std::string& name, const std::vector<int64_t>& shape,
                               const std::string& source, const std::vector<VirtualPiece>& pieces) {
  const Hdf5Handle space = simple_space(extent(shape));
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const std::string what = fmt::format("writing {} failed", name);
  for (const VirtualPiece& piece : pieces) {
    const std::vector<hsize_t> begin = extent(piece.begin), count = extent(piece.count);
    const Hdf5Handle of_source = simple_space(extent({piece.n_source}));
    hsize_t n_elem = 1;
    for (const hsize_t n : count) n_elem *= n;
    const hsize_t source_begin = static_cast<hsize_t>(piece.source_begin);
    const bool ok = H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, begin.data(), nullptr,
                                        count.data(), nullptr) >= 0 &&
                    H5Sselect_hyperslab(of_source.id(), H5S_SELECT_SET, &source_begin, nullptr,
                                        &n_elem, nullptr) >= 0 &&
                    H5Pset_virtual(creation.id(), space.id(), piece.file.c_str(), source.c_str(),
                                   of_source.id()) >= 0;
    need(ok, what);
  }
  const Hdf5Handle link(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(link.id(), 1);
  const Hdf5Handle whole = simple_space(extent(shape));
  const Hdf5Handle dataset(H5Dcreate2(file_.id(), name.c_str(), H5T_IEEE_F32LE, whole.id(),
                                      link.id(), creation.id(), H5P_DEFAULT),
                           H5Dclose);
  need(dataset.valid(), what);
}

void Hdf5Writer::close() {
  need(H5Fflush(file_.id(), H5F_SCOPE_LOCAL) >= 0, "writing failed");
  need(file_.close() >= 0, "closing failed");
  const int synced = ::fsync(synced_), error = errno;
  // close may report what a network file system wrote late.
  const int closed = ::close(std::exchange(synced_, -1));
  if (synced != 0) fail_io(path_, "syncing failed", error);
  if (closed != 0) fail_io(path_, "closing failed", errno);
}

}  // namespace utrain
