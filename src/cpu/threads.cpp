// Threads of the CPU backend: OpenMP's and OpenBLAS's are the same number.
#include <cblas.h>
#include <omp.h>

#include "backend.h"

namespace utrain {

void set_cpu_threads(int n) {
  omp_set_num_threads(n);
  openblas_set_num_threads(n);
}

std::string cpu_blas() {
  std::string config = openblas_get_config();
  while (!config.empty() && config.back() == ' ') config.pop_back();
  return config + ", kernels for " + openblas_get_corename();
}

}  // namespace utrain
