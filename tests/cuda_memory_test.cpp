// Memory of the GPU: uploads, downloads, zero, conversion, and what happens where there is none
// left.
#include <cstring>
#include <numeric>

#include "cuda_oracle.h"

namespace utrain {
namespace {

TEST(CudaMemory, UploadsReadTheHostBeforeTheyReturn) {
  UTRAIN_NEEDS_GPU();
  const auto backend = make_cuda_backend(DType::f32);
  // Larger than the ring, around a chunk, and many more small ones than it holds at once.
  for (const int64_t n : {int64_t{1}, int64_t{1000}, (int64_t{8} << 20) + 3, int64_t{40} << 20}) {
    std::vector<char> host(n), wanted(n), found(n);
    for (int64_t i = 0; i < n; ++i) host[i] = wanted[i] = static_cast<char>(i * 2654435761u >> 13);
    void* device = backend->allocate(n);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(device) % 256, 0u);
    backend->upload(device, host.data(), n);
    std::memset(host.data(), 0, n);
    backend->download(found.data(), device, n);
    EXPECT_TRUE(found == wanted) << n << " bytes";
  }
}

TEST(CudaMemory, ManySmallUploadsKeepTheirOrder) {
  UTRAIN_NEEDS_GPU();
  const auto backend = make_cuda_backend(DType::f32);
  constexpr int n_uploads = 3000, n_elem = 5000;
  auto* device = static_cast<char*>(backend->allocate(int64_t{n_elem} * 4 * 10));
  std::vector<int32_t> host(n_elem), found(n_elem * 10);
  for (int i = 0; i < n_uploads; ++i) {
    std::fill(host.begin(), host.end(), i);
    backend->upload(device + i % 10 * int64_t{n_elem} * 4, host.data(), n_elem * 4);
  }
  backend->download(found.data(), device, n_elem * 4 * 10);
  for (int i = 0; i < 10 * n_elem; ++i) ASSERT_EQ(found[i], n_uploads - 10 + i / n_elem);
}

TEST(CudaMemory, ZeroKeepsBetweenTheRows) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64}) {
    CudaOperands operands(DType::bf16);
    const Tensor x = operands.output(5, 9, dtype);
    operands.backend().zero(x);
    EXPECT_TRUE(operands.read(x) == Matrix(5, 9));
    const Tensor whole{x.data, dtype, 4, x.ld, x.ld};  // contiguous, with what lay between the rows
    operands.backend().zero(whole);
    EXPECT_TRUE(operands.read(whole) == Matrix(4, x.ld));
  }
}

TEST(CudaConvert, RoundsToNearestEven) {
  UTRAIN_NEEDS_GPU();
  for (const DType from : kCudaDTypes) {
    for (const DType to : kCudaDTypes) {
      for (const int64_t cols : {1, 77, 256}) {
        Matrix x = rounded(from, random_matrix(33, cols, 5));
        if (cols > 3) {
          // Ties of bf16 and f16, a subnormal of f16, a value that rounds up to the next power of
          // two.
          const double special[] = {1.0 + 0x1p-8, 1.0 + 3 * 0x1p-8, 1.0 + 0x1p-11,
                                    0x1p-24,      1.0 - 0x1p-20,    -0x1p-15};
          for (int64_t i = 0; i < 6; ++i) x.at(i, cols / 2) = special[i];
          x = rounded(from, x);
        }
        for (const int64_t padding : kCudaPaddings) {
          CudaOperands operands(DType::bf16, padding);
          const Tensor y = operands.output(33, cols, to);
          operands.backend().convert(y, operands.input(x, from));
          EXPECT_TRUE(operands.read(y) == rounded(to, x))
              << name_of(from) << " to " << name_of(to) << ", " << cols;
        }
      }
    }
  }
}

TEST(CudaMemory, TooMuchIsAUsageErrorAndLeavesTheBackendWorking) {
  UTRAIN_NEEDS_GPU();
  CudaOperands operands(DType::f32);
  try {
    operands.backend().allocate(int64_t{1} << 46);
    FAIL() << "64 TiB were given";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    for (const char* word : {"70368744177664 bytes wanted", "bytes free", "train.recompute"}) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  }
  const Tensor x = operands.output(5, 9);
  operands.backend().zero(x);
  EXPECT_TRUE(operands.read(x) == Matrix(5, 9));
}

TEST(CudaBackend, SaysWhatItIs) {
  UTRAIN_NEEDS_GPU();
  for (const DType dtype : kCudaDTypes) {
    const auto backend = make_cuda_backend(dtype);
    EXPECT_EQ(backend->dtype(), dtype);
    EXPECT_EQ(backend->trainable_dtype(), DType::f32);
    EXPECT_EQ(backend->loss_dtype(), DType::f64);
    EXPECT_GE(backend->reserve_bytes(), 64 << 20);
  }
  const GpuInfo gpu = visible_gpus().front();
  EXPECT_GE(gpu.compute_capability, 80);
  EXPECT_EQ(gpu.uuid.size(), 40u);
  EXPECT_LE(gpu_free_bytes(0), gpu.memory_bytes);
}

TEST(CudaBackend, RefusesWhatIsNotThere) {
  const int n = static_cast<int>(visible_gpus().size());
  for (const auto& [dtype, device] :
       {std::pair(DType::f32, n), std::pair(DType::f32, -1), std::pair(DType::f64, 0)}) {
    try {
      make_cuda_backend(dtype, device);
      FAIL() << name_of(dtype) << " on GPU " << device;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage) << error.what();
    }
  }
}

}  // namespace
}  // namespace utrain
