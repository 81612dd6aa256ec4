// Times the attention kernels on a GPU of Hopper: median of 20 runs of each shape, in ms and TFLOP/s of the model: two
// products forward, five backward, of the pairs that see each other. What is computed twice or
// hidden by the mask does not count. First Hopper's own kernels, then those of all GPUs.
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -DFMT_USE_CONSTEXPR=1 -Isrc -Icuda
//     -o attention_time tools/kernel_lab/attention_time.cu cuda/attention*.cu cuda/tile_map.cu -lfmt
//   ./attention_time [runs of each shape]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

#include "cuda_check.h"
#include "ops.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

struct Shape {
  const char* name;
  std::vector<int> documents;  // lengths
  int Hq, Hkv, D, window;
  DType dtype;
};

// Device memory of one shape.
class Buffers {
 public:
  ~Buffers() {
    for (void* x : memory_) cudaFree(x);
  }
  void* allocate(int64_t bytes) {
    void* x = nullptr;
    CUDA_CHECK(cudaMalloc(&x, bytes));
    memory_.push_back(x);
    return x;
  }
  Tensor tensor(DType dtype, int64_t rows, int64_t cols) {
    return make_tensor(allocate(rows * cols * size_of(dtype)), dtype, rows, cols);
  }
  const int32_t* integers(const std::vector<int32_t>& x) {
    void* data = allocate(static_cast<int64_t>(x.size()) * 4);
    CUDA_CHECK(cudaMemcpy(data, x.data(), x.size() * 4, cudaMemcpyHostToDevice));
    return static_cast<const int32_t*>(data);
  }

 private:
  std::vector<void*> memory_;
};

__device__ float uniform(uint64_t i) {
  i = (i + 1) * 0x9e3779b97f4a7c15u;
  i = (i ^ (i >> 31)) * 0xbf58476d1ce4e5b9u;
  return static_cast<float>(static_cast<uint32_t>(i >> 32)) * 0x1p-31f - 1.0f;
}

template <class T>
__global__ void fill_kernel(T* x, int64_t n, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    x[i] = from_float<T>(uniform(seed * 0x100000000u + i));
  }
}

void fill(const Tensor& x, uint64_t seed) {
  dispatch(x.dtype, [&](auto t) {
    using T = decltype(t);
    fill_kernel<<<1024, 256>>>(x.as<T>(), x.n_elem(), seed);
  });
  CUDA_LAUNCH_CHECK();
}

template <class Run>
double median_ms(int n_runs, const Run& run) {
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < n_runs + 3; ++i) {
    CUDA_CHECK(cudaEventRecord(begin));
    run();
    CUDA_CHECK(cudaEventRecord(end));
    CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0.0f;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  std::ranges::nth_element(times, times.begin() + n_runs / 2);
  return times[n_runs / 2];
}

void time_shape(const Shape& s, int n_runs, const AttentionDevice& device) {
  std::vector<int32_t> begin, end;
  double n_pairs = 0.0;
  for (const int length : s.documents) {
    const int first = static_cast<int>(begin.size());
    for (int i = 0; i < length; ++i) {
      begin.push_back(first);
      end.push_back(first + length);
      n_pairs += s.window > 0 ? std::min(i + 1, s.window) : i + 1;
    }
  }
  Buffers buffers;
  const int64_t N = static_cast<int64_t>(begin.size()), q = int64_t{s.Hq} * s.D,
                kv = int64_t{s.Hkv} * s.D;
  const Tensor qkv = buffers.tensor(s.dtype, N, q + 2 * kv),
               dqkv = buffers.tensor(s.dtype, N, q + 2 * kv);
  const Tensor out = buffers.tensor(s.dtype, N, q), dout = buffers.tensor(s.dtype, N, q);
  const Tensor lse = buffers.tensor(DType::f32, N, s.Hq),
               delta = buffers.tensor(DType::f32, N, s.Hq);
  fill(qkv, 1);
  fill(dout, 2);
  TokenBatch batch;
  batch.n_rows = N;
  batch.begin = buffers.integers(begin);
  batch.end = buffers.integers(end);
  const AttentionShape shape{
      .Hq = s.Hq, .Hkv = s.Hkv, .D = s.D, .scale = 1.0 / std::sqrt(s.D), .window = s.window};

  const double forward_ms = median_ms(n_runs, [&] {
    attention_forward(out, lse, qkv.columns(0, q), qkv.columns(q, kv), qkv.columns(q + kv, kv),
                      batch, shape, device);
  });
  const double backward_ms = median_ms(n_runs, [&] {
    attention_backward(dqkv, delta, dout, {qkv, out, lse}, batch, shape, device);
  });
  const double tflop = 4e-12 * n_pairs * s.Hq * s.D;
  std::printf("%-34s %-8s forward %8.3f ms %6.1f TFLOP/s   backward %8.3f ms %6.1f TFLOP/s\n",
              s.name, s.dtype == DType::f32 ? "float32" : "bfloat16", forward_ms,
              tflop / forward_ms * 1e3, backward_ms, 2.5 * tflop / backward_ms * 1e3);
}

void time_all(int n_runs, const AttentionDevice& device) {
  std::mt19937 engine(1);
  std::vector<int> packed;
  for (int left = 8192; left > 0; left -= packed.back()) {
    packed.push_back(std::min<int>(left, 50 + engine() % 1000));
  }
  for (const Shape& shape :
       {Shape{"2 x 4096, 32/8 heads, D 128", {4096, 4096}, 32, 8, 128, 0, DType::bf16},
        Shape{"4 x 2048, 32/8 heads, D 128", {2048, 2048, 2048, 2048}, 32, 8, 128, 0, DType::bf16},
        Shape{"1 x 8192, 32/8 heads, D 128", {8192}, 32, 8, 128, 0, DType::bf16},
        Shape{"2 x 4096, 32/8 heads, D 64", {4096, 4096}, 32, 8, 64, 0, DType::bf16},
        Shape{"2 x 4096, window 1024, D 128", {4096, 4096}, 32, 8, 128, 1024, DType::bf16},
        Shape{"packed 50..1049, D 128", packed, 32, 8, 128, 0, DType::bf16},
        Shape{"2 x 4096, 32/8 heads, D 96", {4096, 4096}, 32, 8, 96, 0, DType::bf16},
        Shape{"2 x 1024, 32/8 heads, D 128", {1024, 1024}, 32, 8, 128, 0, DType::f32}}) {
    time_shape(shape, n_runs, device);
  }
}

}  // namespace
}  // namespace utrain::cuda

int main(int argc, char** argv) {
  try {
    const int n_runs = argc > 1 ? std::max(1, std::atoi(argv[1])) : 20;
    cudaDeviceProp gpu;
    CUDA_CHECK(cudaGetDeviceProperties(&gpu, 0));
    int* next_item = nullptr;
    CUDA_CHECK(cudaMalloc(&next_item, sizeof(int)));
    const utrain::cuda::Hopper hopper{gpu.multiProcessorCount, next_item};
    utrain::cuda::time_all(n_runs, {nullptr, &hopper});
    std::puts("general kernels");
    utrain::cuda::time_all(n_runs, {nullptr, nullptr});
    CUDA_CHECK(cudaFree(next_item));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "attention_time: %s\n", e.what());
    return 1;
  }
}
