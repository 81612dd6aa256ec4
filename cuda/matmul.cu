// Products of row-major matrices by a column-major library: a row-major [m, n] matrix with stride
// ld IS the column-major [n, m] matrix with the same ld, its transpose. So c = op(a) op(b) is asked
// for as c' = op(b)' op(a)': operands change places, each keeps its own transposition, and the bias
// of c's columns is the library's bias of rows.
#include <cublasLt.h>

#include "cuda_check.h"
#include "matmul.h"
#include "types.cuh"

namespace utrain::cuda {
namespace {

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return CUDA_R_32F;
    case DType::bf16: return CUDA_R_16BF;
    case DType::f16: return CUDA_R_16F;
    default: ASSERT(!"a dtype of products on the GPU");
  }
  return CUDA_R_32F;
}

// What an address is a multiple of, up to the 16 bytes that kernels ask for: more would let the
// same product of another buffer choose another algorithm, and recomputation other bits.
int64_t alignment_of(const void* data) {
  constexpr uintptr_t most = 16;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data) | most;
  return static_cast<int64_t>(address & (~address + 1));
}
int64_t alignment_of_output(const Product& p) {
  return std::min(alignment_of(p.c.data), alignment_of(p.bias.data));
}

// One kind of handle of cuBLASLt, destroyed with its owner.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
struct Owned {
  Handle handle = nullptr;
  Owned() = default;
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (handle != nullptr) destroy(handle);
  }
};
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

void make_layout(Layout& layout, const Tensor& x) {
  CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout.handle, data_type(x.dtype),
                                          static_cast<uint64_t>(x.cols),
                                          static_cast<uint64_t>(x.rows), x.ld));
}

template <class Value>
void set(const Description& description, cublasLtMatmulDescAttributes_t attribute, Value value) {
  CUBLAS_CHECK(
      cublasLtMatmulDescSetAttribute(description.handle, attribute, &value, sizeof(value)));
}
template <class Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         Value value) {
  CUBLAS_CHECK(
      cublasLtMatmulPreferenceSetAttribute(preference.handle, attribute, &value, sizeof(value)));
}

cublasOperation_t operation(Transpose transpose) {
  return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

std::string described(const Product& p) {
  return fmt::format("{} [{}, {}] = {} [{}, {}]{} * [{}, {}]{}, strides {}, {}, {}",
                     name_of(p.c.dtype), p.c.rows, p.c.cols, name_of(p.a.dtype), p.a.rows, p.a.cols,
                     p.transpose_a == Transpose::yes ? "'" : "", p.b.rows, p.b.cols,
                     p.transpose_b == Transpose::yes ? "'" : "", p.c.ld, p.a.ld, p.b.ld);
}

// The sum over an empty k: c = beta * c.
void scale_by_beta(const Product& p, cudaStream_t stream) {
  ASSERT(p.beta == 0.0f || p.beta == 1.0f);
  if (p.beta == 1.0f) return;
  const size_t size = size_of(p.c.dtype);
  CUDA_CHECK(cudaMemset2DAsync(p.c.data, p.c.ld * size, 0, p.c.cols * size, p.c.rows, stream));
}

}  // namespace

struct Blas::Plan {
  Description description;
  Layout c, a, b;
  cublasLtMatmulAlgo_t algorithm;
};

Blas::Blas(cudaStream_t stream, void* workspace) : stream_(stream), workspace_(workspace) {
  CUBLAS_CHECK(cublasLtCreate(&handle_));
}

Blas::~Blas() {
  plans_.clear();
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

Blas::Key Blas::key_of(const Product& p) {
  return {p.c.rows,
          p.c.cols,
          p.k,
          p.c.ld,
          p.a.ld,
          p.b.ld,
          static_cast<int64_t>(p.c.dtype),
          static_cast<int64_t>(p.a.dtype),
          static_cast<int64_t>(p.transpose_a),
          static_cast<int64_t>(p.transpose_b),
          alignment_of_output(p),
          alignment_of(p.a.data),
          alignment_of(p.b.data),
          p.bias.empty() ? 0 : 1,
          p.beta == 0.0f ? 0 : 1,
          p.device_alpha.values == nullptr ? 0 : 1};
}

std::unique_ptr<Blas::Plan> Blas::make_plan(const Product& p) const {
  auto plan = std::make_unique<Plan>();
  CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->description.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(plan->description, CUBLASLT_MATMUL_DESC_TRANSA, operation(p.transpose_b));
  set(plan->description, CUBLASLT_MATMUL_DESC_TRANSB, operation(p.transpose_a));
  if (p.device_alpha.values != nullptr) {
    set(plan->description, CUBLASLT_MATMUL_DESC_POINTER_MODE,
        static_cast<int32_t>(CUBLASLT_POINTER_MODE_DEVICE));
  }
  if (!p.bias.empty()) {
    set(plan->description, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
        static_cast<const void*>(p.bias.data));
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(p.bias.dtype));
  }
  make_layout(plan->c, p.c);
  make_layout(plan->a, p.a);
  make_layout(plan->b, p.b);

  Preference preference;
  CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference.handle));
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  // Parts of k meet in float32 in the workspace or not at all: in place they would take turns, or
  // round to c's dtype.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
      static_cast<uint32_t>(alignment_of(p.b.data)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
      static_cast<uint32_t>(alignment_of(p.a.data)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
      static_cast<uint32_t>(alignment_of_output(p)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
      static_cast<uint32_t>(alignment_of_output(p)));

  cublasLtMatmulHeuristicResult_t found{};
  int n_found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, plan->description.handle, plan->b.handle, plan->a.handle, plan->c.handle,
      plan->c.handle, preference.handle, 1, &found, &n_found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && n_found == 0)) {
    fail(ExitCode::internal, "cuBLASLt", fmt::format("no algorithm for {}", described(p)),
         "please report it with this line and what --version prints");
  }
  CUBLAS_CHECK(status);
  plan->algorithm = found.algo;
  return plan;
}

Blas::Plan& Blas::plan_of(const Product& p) {
  std::unique_ptr<Plan>& plan = plans_[key_of(p)];
  if (plan == nullptr) {
    plan = make_plan(p);
  } else if (!p.bias.empty()) {
    set(plan->description, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
        static_cast<const void*>(p.bias.data));
  }
  return *plan;
}

void Blas::matmul(const Product& p) {
  ASSERT(p.a.dtype == p.b.dtype && (p.c.dtype == p.a.dtype || p.c.dtype == DType::f32));
  ASSERT(p.bias.empty() ||
         (p.beta == 0.0f && p.bias.dtype == p.c.dtype && p.bias.cols == p.c.cols));
  if (p.c.rows == 0 || p.c.cols == 0) return;
  if (p.k == 0) {
    ASSERT(p.bias.empty());
    return scale_by_beta(p, stream_);
  }
  Plan& plan = plan_of(p);
  const float* on_device = p.device_alpha.values;
  ASSERT(on_device == nullptr || p.beta == 0.0f || p.beta == 1.0f);
  const float* alpha = on_device != nullptr ? on_device : &p.alpha;
  const float* beta = on_device != nullptr ? on_device + (p.beta == 0.0f ? 1 : 2) : &p.beta;
  CUBLAS_CHECK(cublasLtMatmul(handle_, plan.description.handle, alpha, p.b.data, plan.b.handle,
                              p.a.data, plan.a.handle, beta, p.c.data, plan.c.handle, p.c.data,
                              plan.c.handle, &plan.algorithm, workspace_, kWorkspaceBytes,
                              stream_));
}

bool takes_bias(const Tensor& c, const Tensor& bias) {
  const int n = static_cast<int>(16 / size_of(c.dtype));
  return vectorizable(c, n) && vectorizable(bias, n);
}

void matmul_nt(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, float alpha,
               float beta) {
  ASSERT(a.rows == c.rows && b.rows == c.cols && a.cols == b.cols);
  blas.matmul({c, a, b, Transpose::no, Transpose::yes, a.cols, alpha, beta});
}

void matmul_nn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, float alpha,
               float beta) {
  ASSERT(a.rows == c.rows && b.cols == c.cols && a.cols == b.rows);
  blas.matmul({c, a, b, Transpose::no, Transpose::no, a.cols, alpha, beta});
}

void matmul_tn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, float alpha,
               float beta) {
  ASSERT(a.cols == c.rows && b.cols == c.cols && a.rows == b.rows);
  blas.matmul({c, a, b, Transpose::yes, Transpose::no, a.rows, alpha, beta});
}

void matmul_nn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, DeviceFactor alpha,
               float beta) {
  ASSERT(a.rows == c.rows && b.cols == c.cols && a.cols == b.rows);
  blas.matmul({c, a, b, Transpose::no, Transpose::no, a.cols, 1.0f, beta, {}, alpha});
}

void matmul_tn(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b, DeviceFactor alpha,
               float beta) {
  ASSERT(a.cols == c.rows && b.cols == c.cols && a.rows == b.rows);
  blas.matmul({c, a, b, Transpose::yes, Transpose::no, a.rows, 1.0f, beta, {}, alpha});
}

void matmul_nt_bias(Blas& blas, const Tensor& c, const Tensor& a, const Tensor& b,
                    const Tensor& bias) {
  ASSERT(a.rows == c.rows && b.rows == c.cols && a.cols == b.cols);
  blas.matmul({c, a, b, Transpose::no, Transpose::yes, a.cols, 1.0f, 0.0f, bias});
}

}  // namespace utrain::cuda
