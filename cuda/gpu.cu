// Which GPUs there are, and whether one can be used: backend.h's visible_gpus, gpu_free_bytes,
// cuda_versions, and open_gpu. CUDA_VISIBLE_DEVICES is the driver's affair: a device is an index
// into what it leaves.
#include "backend.h"
#include "comm/nccl_collectives.h"
#include "cuda_check.h"
#include "gpu.h"

namespace utrain {
namespace {

constexpr int kOldestCapability = 80;

// 13020 is 13.2
std::string cuda_version(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

int driver_version() {
  int version = 0;
  CUDA_CHECK(cudaDriverGetVersion(&version));
  return version;
}

std::string uuid_of(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

// 0 with the reason in status where there is no driver, no GPU, or a driver that does not work.
int count_gpus(cudaError_t& status) {
  int n = 0;
  status = cudaGetDeviceCount(&n);
  if (status == cudaSuccess) return n;
  cudaGetLastError();  // told by status, not at the next launch
  return 0;
}

std::string text_of_broken_driver(cudaError_t status) {
  return fmt::format("the NVIDIA driver does not work: {} ({})", cudaGetErrorString(status),
                     cudaGetErrorName(status));
}

std::string text_of_old_driver(int driver) {
  return fmt::format("the NVIDIA driver runs CUDA {}, this binary needs {}", cuda_version(driver),
                     cuda_version(CUDART_VERSION));
}

[[noreturn]] void fail_without_gpu(cudaError_t status) {
  const int driver = driver_version();
  constexpr const char* where = "run.backend";
  if (driver == 0) {
    fail(ExitCode::usage, where, "cuda was asked for, but there is no NVIDIA driver here",
         "run on a node with GPUs, or set run.backend = \"cpu\"");
  }
  if (status == cudaErrorInsufficientDriver) {
    fail(ExitCode::usage, where, text_of_old_driver(driver),
         "install a newer driver, or build with an older CUDA toolkit");
  }
  if (status != cudaErrorNoDevice && status != cudaSuccess) {
    fail(ExitCode::internal, where, text_of_broken_driver(status),
         "check the driver with nvidia-smi, or set run.backend = \"cpu\"");
  }
  fail(ExitCode::usage, where, "cuda was asked for, but no GPU is visible",
       "check CUDA_VISIBLE_DEVICES and what the job was given, or set run.backend = \"cpu\"");
}

__global__ void probe_kernel() {}

}  // namespace

void cuda::open_gpu(int device) {
  cudaError_t status = cudaSuccess;
  const int n = count_gpus(status);
  if (n == 0) fail_without_gpu(status);
  const std::string where = fmt::format("GPU {}", device);
  if (device < 0 || device >= n) {
    fail(ExitCode::usage, where, fmt::format("only {} GPU{} visible", n, n == 1 ? " is" : "s are"),
         "start fewer ranks on this node, or check CUDA_VISIBLE_DEVICES");
  }
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  if (properties.major * 10 + properties.minor < kOldestCapability) {
    fail(ExitCode::usage, where,
         fmt::format("{} has compute capability {}.{}, 8.0 or newer is needed", properties.name,
                     properties.major, properties.minor),
         "choose another GPU with CUDA_VISIBLE_DEVICES, or set run.backend = \"cpu\"");
  }
  CUDA_CHECK(cudaSetDevice(device));
  cudaFuncAttributes attributes;
  status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    fail(ExitCode::usage, where,
         fmt::format("this binary holds no kernels for compute capability {}.{} ({})",
                     properties.major, properties.minor, properties.name),
         fmt::format("build it with -DUTRAIN_CUDA_ARCHITECTURES={}{}", properties.major,
                     properties.minor));
  }
  CUDA_CHECK(status);
}

std::vector<GpuInfo> visible_gpus() {
  cudaError_t status = cudaSuccess;
  std::vector<GpuInfo> gpus(count_gpus(status));
  for (size_t i = 0; i < gpus.size(); ++i) {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, static_cast<int>(i)));
    gpus[i] = {properties.name, uuid_of(properties.uuid),
               static_cast<int64_t>(properties.totalGlobalMem),
               properties.major * 10 + properties.minor, cuda_version(driver_version())};
  }
  return gpus;
}

std::string gpu_problem() {
  cudaError_t status = cudaSuccess;
  const int n = count_gpus(status), driver = driver_version();
  if (n > 0 || status == cudaSuccess || status == cudaErrorNoDevice || driver == 0) return "";
  return status == cudaErrorInsufficientDriver ? text_of_old_driver(driver)
                                               : text_of_broken_driver(status);
}

int64_t gpu_free_bytes(int device) {
  cuda::open_gpu(device);
  size_t free_bytes = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  return static_cast<int64_t>(free_bytes);
}

bool cuda_is_built() {
  return true;
}

std::string cuda_versions() {
  const int driver = driver_version();
  const size_t blas = cublasLtGetVersion();
  int runtime = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  return fmt::format("{}, driver {}, cuBLASLt {}.{}.{}, NCCL {}", cuda_version(runtime),
                     driver == 0 ? "none" : "CUDA " + cuda_version(driver), blas / 10000,
                     blas / 100 % 100, blas % 100, nccl_version());
}

}  // namespace utrain
