#include "app/version.h"

#include <fmt/core.h>

#include "backend.h"
#include "comm/world.h"
#include "io/hdf5.h"
#include "revision.h"  // made by the build

namespace utrain {

std::string version() {
  return UTRAIN_VERSION;
}

std::string revision() {
  return UTRAIN_REVISION;
}

std::string build_identity() {
  return fmt::format("{} {} {} {}", UTRAIN_VERSION, UTRAIN_REVISION, UTRAIN_BUILD_TYPE,
                     __VERSION__);
}

std::string version_text() {
  return fmt::format(
      "utrain {} ({})\n"
      "compiler  gcc-compatible {} ({})\n"
      "MPI       {}\n"
      "HDF5      {}\n"
      "BLAS      {}\n"
      "CUDA      {}\n",
      version(), revision(), __VERSION__, UTRAIN_BUILD_TYPE, World::mpi_version(), hdf5_version(),
      cpu_blas(), cuda_versions());
}

}  // namespace utrain
