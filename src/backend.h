// THE CONTRACT: every numeric operation of utrain. The model is written once, on this class alone;
// cpu/ and cuda/ implement it, one file per operation, same base name.
//
// Letters: N rows (tokens) of a pass, C hidden, F feed-forward, V vocabulary, Hq/Hkv heads, D head
// dimension, r LoRA rank, M rows that have a target. Every Tensor has a row stride (ld). "T" is the
// compute type of the activations.
// Contract of all operations: outputs come first and are overwritten (=) unless the line says +=;
// reductions accumulate in float32 or wider and in a fixed order, so that equal calls give equal
// bits. Gradients of weights are += in trainable_dtype; a frozen weight gets none: its gradient is
// an empty tensor. Views passed to one call do not overlap unless the line says "in place".
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace utrain {

// One pass of a rank as the kernels see it; device memory. Rows past the last document are padding:
// each is a document of its own, has no target, and is never counted.
struct TokenBatch {
  int64_t n_rows = 0;                    // N
  const int32_t* tokens = nullptr;       // [N]
  const int32_t* positions = nullptr;    // [N] restart at 0 in each document
  const int32_t* begin = nullptr;        // [N] first row of the row's document
  const int32_t* end = nullptr;          // [N] one past its last row
  const int32_t* documents = nullptr;    // [N] index in the data set: keys the dropout masks
  int64_t n_targets = 0;                 // M
  const int32_t* target_rows = nullptr;  // [M] ascending
  const int32_t* targets = nullptr;      // [M] the token that row must predict
  // [N] rows in the order of their tokens, equal ones ascending: what embedding_backward needs
  const int32_t* rows_by_token = nullptr;
};

// Inverted dropout of x before A, as PEFT. The mask is a function of (seed, epoch, document,
// position, site, column) alone: core/random.h.
struct Dropout {
  float p = 0.0f;
  uint64_t seed = 0;
  int64_t epoch = 0;
};

// A and B of one projection. It covers rows [row_begin, row_begin + B.rows) of its group's output.
struct LoraAdapter {
  int64_t row_begin = 0;
  uint32_t site = 0;  // dropout site: 7 * layer + projection
  Tensor A;           // [r, in] T
  Tensor B;           // [out of the projection, r] T
  Tensor dA, dB;      // their gradients, float32 (T where T is wider); empty in evaluation
};

// A group of projections that share their input (q|k|v, o, gate|up, down) as one matrix with its
// adapters: y = x W' + bias + scaling * drop(x) A' B'. Hu et al. 2021, arXiv:2106.09685
struct Linear {
  Tensor W;                               // [out, in] T
  Tensor bias;                            // [1, out] T, or empty
  std::span<const LoraAdapter> adapters;  // ascending row_begin
  int64_t r = 0;
  float scaling = 0.0f;        // alpha / r, or alpha / sqrt(r)
  Tensor dW = {}, dbias = {};  // gradients of W and bias; empty where frozen
};

// Sums over rows are made of this many parts, added in order, in a scratch tensor `column_sums`
// [kColumnParts, widest] in trainable_dtype; empty where no bias and no norm is trained.
inline constexpr int64_t kColumnParts = 128;

// What a Linear needs besides its operands.
struct LinearContext {
  TokenBatch batch;
  Dropout dropout;
  Tensor dropped;           // [N, largest in] T scratch; empty where dropout is 0
  Tensor dxa;               // [N, largest adapters * r] T scratch
  Tensor column_sums = {};  // scratch, as wide as dbias at least
};

// The matrix that makes logits.
struct Head {
  Tensor W;        // [V, C] T
  Tensor dW = {};  // its gradient; empty where frozen
};

// What the gradient of the summed loss is multiplied by: value * scale.
struct LossFactor {
  double value = 1.0;  // 1 / targets of the global batch
  Tensor scale = {};   // [1, 1] float64 on the device, StepState::loss_scale; empty: 1
};

// Where cross_entropy works, one chunk of target rows at a time: all logits are never held.
struct LossScratch {
  Tensor logits;  // [rows of a chunk, V] T
  Tensor x_rows;  // [rows of a chunk, C] T
  Tensor losses;  // [1, rows of a chunk] loss_dtype
};

struct AttentionShape {
  int64_t Hq = 0, Hkv = 0, D = 0;  // Hq % Hkv == 0; query head h reads key head h / (Hq / Hkv)
  double scale = 0.0;              // 1 / sqrt(D)
  int64_t window = 0;              // query i sees keys j <= i with i - j < window; 0 = all
};

struct AdamW {
  double lr = 0.0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
};

// How the loss is scaled so that small gradients of float16 do not vanish, with DeepSpeed's rules
// and names: an overflow, that is a gradient that is not finite under a loss that is, first uses up
// the hysteresis, then halves the scale; a window of good steps in a row doubles it and gives the
// hysteresis back.
struct LossScaling {
  bool dynamic = false;  // false: the scale is 1, whatever the state holds
  double initial_scale = 65536.0, min_scale = 1.0;
  int64_t window = 1000, hysteresis = 2;
};

// What clip() found out about a step, [1, kStepStates] float64 on the device: the update reads it
// there, so no step waits for the host.
enum class StepState {
  loss,             // sum of the cross entropy
  grad_norm,        // of the gradient, whatever the loss was scaled by
  grad_scale,       // what the update multiplies gradients by: clipping, and the scale taken out
  is_finite,        // 1 or 0: no update
  n_updates,        // Adam's own counter
  loss_scale,       // of the next step
  good_steps,       // in a row, since the scale changed or overflowed
  hysteresis_left,  // the scale is halved when one is left
  overflowed,       // 1 or 0: not finite, but a smaller scale may help; 0 at the smallest scale
  n_overflows,      // steps that overflowed so far; the last: kStepStates
};
inline constexpr int64_t kStepStates = static_cast<int64_t>(StepState::n_overflows) + 1;

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;
  virtual DType dtype() const = 0;                     // T
  virtual DType rounds_to() const { return dtype(); }  // another where a backend emulates it
  // Of adapters, gradients and optimizer state: float32, or T where wider.
  virtual DType trainable_dtype() const = 0;
  virtual DType loss_dtype() const = 0;  // of loss sums: float64, or T where wider
  // Rows of passes are padded to a multiple of this, so that products come in few shapes.
  virtual int64_t row_multiple() const { return 1; }
  virtual int64_t reserve_bytes() const { return 0; }  // device memory it holds besides allocate()

  // Memory. The arena takes all of it in one call; a backend frees what it gave when it ends.
  virtual void* allocate(int64_t bytes) = 0;  // 256-byte aligned
  // Host memory that upload and download read and write fastest: pinned for a GPU, 256-byte
  // aligned. It ends with its last owner.
  virtual std::shared_ptr<void> allocate_host(int64_t bytes);
  virtual void upload(void* device, const void* host, int64_t bytes) = 0;
  // Waits for what was launched before.
  virtual void download(void* host, const void* device, int64_t bytes) = 0;
  // A small download in the order of the calls that is waited for later, and alone: begin returns
  // its ticket, end copies what was there then. The newest kSmallInFlight can be asked for.
  static constexpr int64_t kSmallDownload = 256;  // bytes at most
  static constexpr int64_t kSmallInFlight = 64;
  virtual int64_t download_begin(const void* device, int64_t bytes) = 0;
  virtual void download_end(void* host, int64_t ticket) = 0;
  // Large copies from and to host memory of allocate_host that go on beside the computation: each
  // begins when what was called before it is done, copies of its direction among it, and returns
  // its ticket. Neither end is touched by anyone until it is waited for: copy_wait, what is called
  // later begins when the copy is done; copy_wait_host, the caller waits. Ticket 0 is no copy; the
  // newest kCopies can be asked for. A backend that computes where the host does copies at once.
  static constexpr int64_t kCopies = 4096;
  virtual int64_t copy_in_begin(void* device, const void* host, int64_t bytes);
  virtual int64_t copy_out_begin(void* host, const void* device, int64_t bytes);
  virtual void copy_wait(int64_t /*ticket*/) {}
  virtual void copy_wait_host(int64_t /*ticket*/) {}
  // Computes on host memory in trainable_dtype, and converts to dtype(): for what is offloaded.
  virtual std::unique_ptr<Backend> make_host_backend() const;
  // A point in the order of the calls, and the seconds between two of them; waits for `to`. The
  // newest kMoments can be asked for.
  static constexpr int64_t kMoments = 1 << 16;
  virtual int64_t moment() = 0;
  virtual double seconds(int64_t from, int64_t to) = 0;
  // Whether calls return before their work is done.
  virtual bool is_asynchronous() const { return false; }
  virtual void zero(const Tensor& x) = 0;                      // x = 0
  virtual void convert(const Tensor& y, const Tensor& x) = 0;  // y = x in y's dtype, same shape

  // x [N, C] = table[tokens]; table [V, C]
  virtual void embedding_forward(const Tensor& x, const Tensor& table, const TokenBatch& batch) = 0;
  // dtable [V, C] += the rows of dx [N, C], each to its token's row, in row order. Needs
  // rows_by_token; padding adds its dx too, which is 0.
  virtual void embedding_backward(const Tensor& dtable, const Tensor& dx,
                                  const TokenBatch& batch) = 0;

  // y = x * rstd * weight over groups of columns: x, y [N, G*K], rstd [N, G], weight [1, K].
  // G = 1 but for the head norms of Qwen3. rstd = 1 / sqrt(mean(x^2) + eps), in trainable_dtype.
  // y may be x (in place).
  virtual void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                               const Tensor& weight, double eps) = 0;
  // h = x + branch, then y = rmsnorm(h). h may be x (in place).
  virtual void residual_rmsnorm_forward(const Tensor& h, const Tensor& y, const Tensor& rstd,
                                        const Tensor& x, const Tensor& branch, const Tensor& weight,
                                        double eps) = 0;
  // dx = beta * dx + J' dy: beta = 1 adds to the residual stream's gradient, beta = 0 overwrites.
  // dx may be dy if beta = 0. dweight [1, K] += sum over rows and groups of dy * x * rstd, nothing
  // where it is empty.
  virtual void rmsnorm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dy,
                                const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                float beta, const Tensor& column_sums) = 0;
  // h = x + branch [N, C]; h may be x. The last step of a block run again in the backward pass.
  virtual void residual_forward(const Tensor& h, const Tensor& x, const Tensor& branch) = 0;

  // In place on x [N, H*D], any number of heads: pairs (i, i + D/2) turned by the angle of the
  // row's position. cos_sin [positions, D] float32: D/2 cosines, then D/2 sines.
  virtual void rope_forward(const Tensor& x, const Tensor& cos_sin, int64_t D,
                            const TokenBatch& batch) = 0;
  virtual void rope_backward(const Tensor& dx, const Tensor& cos_sin, int64_t D,
                             const TokenBatch& batch) = 0;

  // Causal attention inside each document. q, out [N, Hq*D]; k, v [N, Hkv*D];
  // lse [N, Hq] in trainable_dtype.
  virtual void attention_forward(const Tensor& out, const Tensor& lse, const Tensor& q,
                                 const Tensor& k, const Tensor& v, const TokenBatch& batch,
                                 const AttentionShape& shape) = 0;
  // dqkv [N, (Hq + 2 Hkv) * D] = the gradients of q|k|v; qkv likewise.
  // delta [N, Hq] scratch in trainable_dtype.
  virtual void attention_backward(const Tensor& dqkv, const Tensor& delta, const Tensor& dout,
                                  const Tensor& out, const Tensor& lse, const Tensor& qkv,
                                  const TokenBatch& batch, const AttentionShape& shape) = 0;

  // act [N, F] = silu(gate) * up; gate_up [N, 2F], gate first
  virtual void swiglu_forward(const Tensor& act, const Tensor& gate_up) = 0;
  // dgate_up [N, 2F]; may be gate_up (in place)
  virtual void swiglu_backward(const Tensor& dgate_up, const Tensor& dact,
                               const Tensor& gate_up) = 0;

  // y [N, out] = linear(x [N, in]); xa [N, adapters * r] = drop(x) A', kept for the backward pass
  virtual void linear_forward(const Tensor& y, const Tensor& xa, const Tensor& x,
                              const Linear& linear, const LinearContext& context) = 0;
  // dx [N, in] = the gradient of x, nothing where dx is empty; dA, dB += of every adapter; dW +=
  // dy' x and dbias += column sums of dy, nothing where they are empty
  virtual void linear_backward(const Tensor& dx, const Tensor& dy, const Tensor& x,
                               const Tensor& xa, const Linear& linear,
                               const LinearContext& context) = 0;

  // loss [1, 1] (loss_dtype) += sum over the M targets of the cross entropy of softmax(x[row] W');
  // dx [N, C] = dloss * its gradient, 0 on rows without a target; head.dW += dloss * its gradient.
  // Where dx is empty there is no gradient at all. x [N, C].
  virtual void cross_entropy(const Tensor& loss, const Tensor& dx, const Tensor& x,
                             const Head& head, const TokenBatch& batch, const LossFactor& dloss,
                             const LossScratch& scratch) = 0;

  // block_sums [n / 1024] (loss_dtype) = sums of squares of blocks of 1024 elements of x [1, n];
  // n % 1024 == 0
  virtual void sum_of_squares(const Tensor& block_sums, const Tensor& x) = 0;
  // norm = sqrt of the block sums added in block order / loss scale, is_finite of loss and norm,
  // n_updates += 1 where finite; grad_scale = min(1, max_grad_norm / (norm + 1e-6)), or 1 where
  // max_grad_norm is 0, / loss scale. Then the next step's loss scale, as LossScaling says; the
  // caller puts the first one and its hysteresis into the state.
  virtual void clip(const Tensor& state, const Tensor& loss, const Tensor& block_sums,
                    double max_grad_norm, const LossScaling& scaling) = 0;
  // torch's AdamW on flat buffers [1, n] in trainable_dtype: p, m, v updated in place from
  // g * grad_scale; nothing where the state is not finite
  virtual void adamw_update(const Tensor& p, const Tensor& m, const Tensor& v, const Tensor& g,
                            const Tensor& state, const AdamW& options) = 0;

  // sum [1, 1] float64 = (sum + sum over i of (2 i + 1) w_i) mod 2^48, w_i the 32-bit words of x: an
  // integer in any order of adding, which any one flipped bit changes. sum holds such an integer,
  // or 0; x is contiguous and of any dtype, a multiple of 4 bytes.
  virtual void checksum(const Tensor& sum, const Tensor& x) = 0;
};

// f32: the CPU backend; f64, c128: the oracles; bf16, f16: emulated
std::unique_ptr<Backend> make_cpu_backend(DType dtype);
void set_cpu_threads(int n);  // of the CPU backend, in this process
std::string cpu_blas();       // for --version
bool cuda_is_built();         // false: this binary was made without CUDA
struct CudaOptions {
  bool hopper = true;  // false, in tests: a GPU of Hopper uses the kernels of all others
};
// f32, bf16 or f16 on GPU `device` of visible_gpus(). A usage error without CUDA, driver, GPU, or
// kernels for it.
std::unique_ptr<Backend> make_cuda_backend(DType dtype, int device = 0,
                                           const CudaOptions& options = {});
// Its row_multiple() and reserve_bytes(), known without a GPU: for plans.
inline constexpr int64_t kCudaRowMultiple = 64;
inline constexpr int64_t kCudaReserveBytes = (int64_t{64} << 20) + 256 + 4;
// What CUDA's context and kernels take of a GPU besides, as seen on an H200 with driver 580.
inline constexpr int64_t kCudaContextBytes = 553'000'000;

struct GpuInfo {
  std::string name, uuid;
  int64_t memory_bytes = 0;
  int compute_capability = 0;  // 90 is 9.0
  std::string driver;          // the newest CUDA it runs
};
std::vector<GpuInfo> visible_gpus();  // empty without CUDA, driver or GPU; opens none of them
// Why there are none, where a driver is there but does not work; empty where it does, and without
// CUDA, driver or GPU.
std::string gpu_problem();
int64_t gpu_free_bytes(int device);  // opens it, as make_cuda_backend does
std::string cuda_versions();         // for --version: toolkit and NCCL, or why there are none

}  // namespace utrain
