#include "io/hdf5_sink.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>

namespace utrain {

namespace {

constexpr haddr_t kMaxAddress = std::numeric_limits<int64_t>::max();

struct Info {  // in the access list
  Hdf5Sink* sink;
};

struct OpenSink {
  H5FD_t base;  // HDF5's part, first
  Hdf5Sink* sink;
  haddr_t end;  // of what HDF5 has allocated
};

OpenSink& of(H5FD_t* file) {
  return *reinterpret_cast<OpenSink*>(file);
}
const OpenSink& of(const H5FD_t* file) {
  return *reinterpret_cast<const OpenSink*>(file);
}

H5FD_t* open_sink(const char*, unsigned, hid_t access, haddr_t) {
  const Info* info = static_cast<const Info*>(H5Pget_driver_info(access));
  if (info == nullptr) return nullptr;
  return reinterpret_cast<H5FD_t*>(new (std::nothrow) OpenSink{{}, info->sink, 0});
}

herr_t close_sink(H5FD_t* file) {
  delete &of(file);
  return 0;
}

int compare(const H5FD_t* a, const H5FD_t* b) {
  return of(a).sink == of(b).sink ? 0 : of(a).sink < of(b).sink ? -1 : 1;
}

herr_t query(const H5FD_t*, unsigned long* flags) {
  if (flags != nullptr)
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

haddr_t end_allocated(const H5FD_t* file, H5FD_mem_t) {
  return of(file).end;
}

herr_t set_end_allocated(H5FD_t* file, H5FD_mem_t, haddr_t end) {
  of(file).end = end;
  return 0;
}

haddr_t end_of_file(const H5FD_t* file, H5FD_mem_t) {
  return static_cast<haddr_t>(of(file).sink->size());
}

herr_t read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t at, size_t bytes, void* data) {
  return of(file).sink->read(static_cast<int64_t>(at), data, bytes) ? 0 : -1;
}

herr_t write(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t at, size_t bytes, const void* data) {
  of(file).sink->write(static_cast<int64_t>(at), data, bytes);
  return 0;
}

herr_t truncate(H5FD_t* file, hid_t, hbool_t) {
  of(file).sink->resize(static_cast<int64_t>(of(file).end));
  return 0;
}

H5FD_class_t driver() {
  H5FD_class_t c = {};
  c.name = "utrain";
  c.maxaddr = kMaxAddress;
  c.fc_degree = H5F_CLOSE_WEAK;
  c.fapl_size = sizeof(Info);
  c.open = open_sink;
  c.close = close_sink;
  c.cmp = compare;
  c.query = query;
  c.get_eoa = end_allocated;
  c.set_eoa = set_end_allocated;
  c.get_eof = end_of_file;
  c.read = read;
  c.write = write;
  c.truncate = truncate;
  const H5FD_mem_t map[H5FD_MEM_NTYPES] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(map), std::end(map), c.fl_map);
  [](auto& of_1_14) {  // 1.14 numbers its drivers, and those of others from 512 on
    if constexpr (requires { of_1_14.value; }) {
      of_1_14.version = 1;
      of_1_14.value = static_cast<decltype(of_1_14.value)>(700);
    }
  }(c);
  return c;
}

}  // namespace

Hdf5Sink::Hdf5Sink(const std::string& path, FileSign sign) : path_(path), sign_(std::move(sign)) {
  show(sign_, path_);
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_io(path, "cannot be created", errno);
}

Hdf5Sink::~Hdf5Sink() {
  if (fd_ >= 0) ::close(fd_);
}

Hdf5Handle Hdf5Sink::access() {
  const H5FD_class_t c = driver();
  Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  const Hdf5Handle id(H5FDregister(&c), H5FDunregister);  // the list and the file keep it
  const Info info{this};
  if (H5Pset_driver(access.id(), id.id(), &info) < 0)
    fail(ExitCode::io, path_, hdf5_reason(), "this is a fault of utrain: please report it");
  return access;
}

void Hdf5Sink::check() const {
  if (error_ != 0) fail_io(path_, failed_, error_);
}

bool Hdf5Sink::write(int64_t at, const void* data, size_t bytes) {
  size_ = std::max(size_, at + static_cast<int64_t>(bytes));
  size_t done = 0;
  while (error_ == 0 && done < bytes) {
    show(sign_, path_);
    const size_t piece = std::min(bytes - done, static_cast<size_t>(kBytesOfASign));
    const ssize_t n = ::pwrite(fd_, static_cast<const char*>(data) + done, piece,
                               static_cast<off_t>(at) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      error_ = n < 0 ? errno : ENOSPC;
      failed_ = fmt::format("writing {} bytes at {} failed after {}", bytes, at, done);
      break;
    }
    done += static_cast<size_t>(n);
  }
  return error_ == 0;
}

bool Hdf5Sink::read(int64_t at, void* data, size_t bytes) const {
  std::memset(data, 0, bytes);  // beyond the end of the file
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(fd_, static_cast<char*>(data) + done, bytes - done,
                              static_cast<off_t>(at) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return true;
}

void Hdf5Sink::resize(int64_t bytes) {
  if (error_ == 0 && bytes != size_ && ::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) {
    error_ = errno;
    failed_ = fmt::format("resizing from {} to {} bytes failed", size_, bytes);
  }
  size_ = bytes;
}

void Hdf5Sink::sync_and_close() {
  check();
  const int error = sync_file_data(fd_, size_, sign_, path_);
  // close may report what a network file system wrote late.
  const int closed = ::close(std::exchange(fd_, -1));
  if (error != 0) fail_io(path_, "syncing failed", error);
  if (closed != 0) fail_io(path_, "closing failed", errno);
  show(sign_, path_);
}

}  // namespace utrain
