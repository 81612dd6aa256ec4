// MPI_CHECK(call): an MPI error becomes Error(internal) with the name of the call. Included by
// src/comm/*.cpp only, so that mpi.h stays in this room. Needs MPI_ERRORS_RETURN, which World sets.
#pragma once

#define OMPI_SKIP_MPICXX 1  // the C interface: the C++ one would need another library
#include <mpi.h>

#include <string_view>

#include "core/error.h"

namespace utrain {

inline void check_mpi(int status, std::string_view call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(status, text, &length);
  fail(ExitCode::internal, call.substr(0, call.find('(')), text,
       "MPI failed: see the launcher's messages for a lost rank or network");
}

}  // namespace utrain

#define MPI_CHECK(call) ::utrain::check_mpi((call), #call)
