// The MPI calls of the fault library: each does what injector.h says, then what MPI does.
#define OMPI_SKIP_MPICXX 1  // the C interface alone
#include <mpi.h>

#include "injector.h"

namespace {

using namespace utrain;

template <class Call>
int mpi(const char* call, Call&& real) {
  switch (faults().meet(call, "")) {
    case Then::fail: return MPI_ERR_OTHER;
    case Then::skip: return MPI_SUCCESS;
    default: return real();
  }
}

}  // namespace

extern "C" {

int MPI_Init_thread(int* argc, char*** argv, int required, int* provided) {
  return mpi("MPI_Init_thread", [&] { return PMPI_Init_thread(argc, argv, required, provided); });
}
int MPI_Finalize() {
  return mpi("MPI_Finalize", [] { return PMPI_Finalize(); });
}
int MPI_Waitall(int n, MPI_Request requests[], MPI_Status statuses[]) {
  return mpi("MPI_Waitall", [&] { return PMPI_Waitall(n, requests, statuses); });
}
int MPI_Testall(int n, MPI_Request requests[], int* done, MPI_Status statuses[]) {
  return mpi("MPI_Testall", [&] { return PMPI_Testall(n, requests, done, statuses); });
}
int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  return mpi("MPI_Test", [&] { return PMPI_Test(request, done, status); });
}
int MPI_Isend(const void* data, int n, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request* request) {
  return mpi("MPI_Isend", [&] { return PMPI_Isend(data, n, type, to, tag, comm, request); });
}
int MPI_Barrier(MPI_Comm comm) {
  return mpi("MPI_Barrier", [&] { return PMPI_Barrier(comm); });
}
int MPI_Bcast(void* data, int n, MPI_Datatype type, int root, MPI_Comm comm) {
  return mpi("MPI_Bcast", [&] { return PMPI_Bcast(data, n, type, root, comm); });
}
int MPI_Allreduce(const void* from, void* to, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  return mpi("MPI_Allreduce", [&] { return PMPI_Allreduce(from, to, n, type, op, comm); });
}
int MPI_Allgather(const void* from, int n, MPI_Datatype type, void* to, int m, MPI_Datatype to_type,
                  MPI_Comm comm) {
  return mpi("MPI_Allgather", [&] { return PMPI_Allgather(from, n, type, to, m, to_type, comm); });
}

int MPI_Ibarrier(MPI_Comm comm, MPI_Request* request) {
  return mpi("MPI_Ibarrier", [&] { return PMPI_Ibarrier(comm, request); });
}
int MPI_Ibcast(void* data, int n, MPI_Datatype type, int root, MPI_Comm comm,
               MPI_Request* request) {
  return mpi("MPI_Ibcast", [&] { return PMPI_Ibcast(data, n, type, root, comm, request); });
}
int MPI_Iallreduce(const void* from, void* to, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                   MPI_Request* request) {
  return mpi("MPI_Iallreduce",
             [&] { return PMPI_Iallreduce(from, to, n, type, op, comm, request); });
}
int MPI_Iallgather(const void* from, int n, MPI_Datatype type, void* to, int m,
                   MPI_Datatype to_type, MPI_Comm comm, MPI_Request* request) {
  return mpi("MPI_Iallgather",
             [&] { return PMPI_Iallgather(from, n, type, to, m, to_type, comm, request); });
}

}  // extern "C"
