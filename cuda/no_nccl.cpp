// What a build without NCCL answers. nccl_collectives.cu takes this file's place where there is
// NCCL.
#include "backend.h"
#include "comm/nccl_collectives.h"

namespace utrain {
namespace {

[[noreturn]] void fail_without_nccl() {
  fail(ExitCode::usage, "parallel.collectives",
       "\"nccl\" is not in this version of the binary: it was built without NCCL",
       "set \"auto\" or \"mpi\", or build it again where nccl.h and libnccl are found");
}

}  // namespace

bool nccl_is_built() {
  return false;
}

std::string nccl_version() {
  return "none";
}

std::string nccl_unique_id() {
  fail_without_nccl();
}

std::unique_ptr<Collectives> prepare_nccl_collectives(int, int, Backend&, const NcclOptions&) {
  fail_without_nccl();
}

std::unique_ptr<Collectives> connect_nccl_collectives(std::unique_ptr<Collectives>,
                                                      const std::string&) {
  fail_without_nccl();
}

}  // namespace utrain
