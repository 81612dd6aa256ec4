// What a build without CUDA answers. cuda_backend.cu takes this file's place where there is CUDA.
#include "backend.h"

namespace utrain {
namespace {

[[noreturn]] void fail_without_cuda() {
  fail(ExitCode::usage, "run.backend",
       "\"cuda\" is not in this version of the binary: it was built without CUDA",
       "set run.backend = \"cpu\", or build it again where nvcc is found (make PRESET=cuda)");
}

}  // namespace

bool cuda_is_built() {
  return false;
}

std::unique_ptr<Backend> make_cuda_backend(DType, int, const CudaOptions&) {
  fail_without_cuda();
}

std::vector<GpuInfo> visible_gpus() {
  return {};
}

std::string gpu_problem() {
  return "";
}

int64_t gpu_free_bytes(int) {
  fail_without_cuda();
}

std::string cuda_versions() {
  return "none (built without CUDA)";
}

}  // namespace utrain
