#include "io/hdf5_writer.h"

#include <fmt/format.h>

#include <algorithm>

namespace utrain {

namespace {

constexpr int64_t kChunkElems = int64_t{1} << 20;
constexpr int64_t kChunksAtOnce = 16;

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

// Of creation, without times.
Hdf5Handle properties(hid_t of_what) {
  Hdf5Handle list(H5Pcreate(of_what), H5Pclose);
  H5Pset_obj_track_times(list.id(), false);
  return list;
}

}  // namespace

Hdf5Writer::Hdf5Writer(const std::string& path, FileSign sign)
    : path_(path), sink_(path, std::move(sign)) {
  hdf5_quiet_and_without_plugins();
  const Hdf5Handle access = sink_.access();
  H5Pset_libver_bounds(access.id(), H5F_LIBVER_V110, H5F_LIBVER_V110);
  const Hdf5Handle creation = properties(H5P_FILE_CREATE);
  file_ = Hdf5Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.id(), access.id()), H5Fclose);
  need(file_.valid(), "cannot be created");
}

void Hdf5Writer::need(bool ok, const std::string& what) const {
  const std::string reason = ok ? "" : hdf5_reason();
  sink_.check();
  if (!ok)
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

Hdf5Handle Hdf5Writer::create(const std::string& name, const std::vector<hsize_t>& shape,
                              const std::vector<hsize_t>& chunk, hid_t type) {
  const Hdf5Handle space = simple_space(shape);
  const Hdf5Handle creation = properties(H5P_DATASET_CREATE);
  const Hdf5Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  if (H5Sget_simple_extent_npoints(space.id()) > 0) {
    H5Pset_chunk(creation.id(), static_cast<int>(chunk.size()), chunk.data());
    H5Pset_fletcher32(creation.id());
    H5Pset_fill_time(creation.id(), H5D_FILL_TIME_NEVER);
    H5Pset_chunk_cache(access.id(), 1, 0, 0.0);  // none: each chunk is written in H5Dwrite
  }
  Hdf5Handle dataset(H5Dcreate2(file_.id(), name.c_str(), type, space.id(), H5P_DEFAULT,
                                creation.id(), access.id()),
                     H5Dclose);
  need(dataset.valid(), fmt::format("creating {} failed", name));
  return dataset;
}

void Hdf5Writer::write(const std::string& name, const float* values, int64_t n_elem) {
  const int64_t chunk = n_elem == 0 ? 0 : chunk_elems(n_elem);
  const Hdf5Handle dataset = create(name, extent({n_elem}), extent({chunk}), H5T_IEEE_F32LE);
  const Hdf5Handle space(H5Dget_space(dataset.id()), H5Sclose);
  const int64_t piece = kChunksAtOnce * chunk;
  for (int64_t begin = 0; begin < n_elem; begin += piece) {
    const hsize_t first = static_cast<hsize_t>(begin);
    const hsize_t count = static_cast<hsize_t>(std::min(piece, n_elem - begin));
    const Hdf5Handle memory = simple_space({count});
    need(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, &first, nullptr, &count, nullptr) >= 0 &&
             H5Dwrite(dataset.id(), H5T_NATIVE_FLOAT, memory.id(), space.id(), H5P_DEFAULT,
                      values + begin) >= 0,
         fmt::format("writing {} bytes of {} failed", count * sizeof(float), name));
  }
}

void Hdf5Writer::write(const std::string& name, const int64_t* values, int64_t rows,
                       int64_t columns) {
  const std::vector<hsize_t> shape = extent({rows, columns});
  const Hdf5Handle dataset = create(name, shape, shape, H5T_STD_I64LE);
  if (rows * columns > 0)
    need(H5Dwrite(dataset.id(), H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0,
         fmt::format("writing {} integers of {} failed", rows * columns, name));
}

void Hdf5Writer::group(const std::string& name) {
  const Hdf5Handle creation = properties(H5P_GROUP_CREATE);
  const Hdf5Handle group(
      H5Gcreate2(file_.id(), name.c_str(), H5P_DEFAULT, creation.id(), H5P_DEFAULT), H5Gclose);
  need(group.valid(), fmt::format("creating {} failed", name));
}

void Hdf5Writer::write_virtual(const std::string& name, const std::vector<int64_t>& shape,
                               const std::string& source, const std::vector<VirtualPiece>& pieces) {
  const Hdf5Handle space = simple_space(extent(shape));
  const Hdf5Handle creation = properties(H5P_DATASET_CREATE);
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
  const Hdf5Handle whole = simple_space(extent(shape));
  const Hdf5Handle dataset(H5Dcreate2(file_.id(), name.c_str(), H5T_IEEE_F32LE, whole.id(),
                                      H5P_DEFAULT, creation.id(), H5P_DEFAULT),
                           H5Dclose);
  need(dataset.valid(), what);
}

void Hdf5Writer::close() {
  need(file_.close() >= 0, "closing failed");
  sink_.sync_and_close();
}

}  // namespace utrain
