// What a build without CUDA answers. cuda_backend.cu takes this file's place where there is CUDA.
#include "backend.h"

namespace utrain {

bool cuda_is_built() {
  return false;
}

std::string cuda_versions() {
  return "none (built without CUDA)";
}

}  // namespace utrain
