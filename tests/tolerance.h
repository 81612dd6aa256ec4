// Every bound of the tests, each with its reason: about ten times what was measured, which stands
// in brackets. NMSE = sum |found - wanted|^2 / sum |wanted|^2. Relative errors are in units of the
// largest element.
#pragma once

namespace utrain::tolerance {

// Backward in double against the complex step of its own forward, relative: rounding of both, no
// truncation [2.0e-15].
inline constexpr double kComplexStep = 2e-14;
// The same for the gradient of the whole two-layer model, tensor by tensor [0].
inline constexpr double kModelComplexStep = 1e-12;
// <dy, J v> - <J' dy, v> in units of the product of the norms: rounding of two long sums in double
// [1.7e-16].
inline constexpr double kAdjoint = 2e-15;
// An operation in double against its definition written out, relative: other orders of summation
// [5.1e-16].
inline constexpr double kDouble = 5e-15;

// float32 against double on equal inputs, NMSE; eps^2 / 12 = 1.2e-15 is one rounding.
inline constexpr double kFloatElementwise =
    1e-13;  // a few roundings an element, sums along a row [7.5e-15]
inline constexpr double kFloatAttention =
    1e-12;  // two products and exp of their difference [6.9e-14]
inline constexpr double kFloatMatmul =
    1e-12;  // sums of some hundred terms, softmax on top [1.5e-13]
// Where scores are some hundreds, their rounding, eps * |score|, goes through exp [1.4e-10].
inline constexpr double kFloatLargeScores = 1e-9;
// float32 loss against double, relative: rounding of the logits, averaged over the targets
// [3.8e-8].
inline constexpr double kFloatLoss = 4e-7;
// Three steps of AdamW in float32 against torch in double, relative: a few roundings [1.1e-7].
inline constexpr double kFloatAdamW = 1e-6;
// exp of float32, relative to a normal result: what cpu/exp.h promises [8.7e-8].
inline constexpr double kFloatExp = 2e-7;

// Share of elements that dropout keeps: five standard deviations of 1e5 trials at p = 0.25 [two].
inline constexpr double kDropoutRate = 7e-3;

// The program in float32 against transformers + PEFT in float32, tests/golden. About ten times what
// the same in double differs from them; leaving out clipping, eps or weight decay breaks them.
inline constexpr double kGoldenLogits = 2e-5;    // absolute, logits of about 1 [2.0e-6]
inline constexpr double kGoldenLoss = 2e-5;      // relative [9.4e-8]
inline constexpr double kGoldenGradient = 2e-5;  // relative, Frobenius, tensor by tensor [1.2e-6]
inline constexpr double kGoldenCurve =
    2e-5;  // relative, loss and norm of each of ten steps [2.3e-7]
inline constexpr double kGoldenAdapter = 1e-4;  // relative, Frobenius, after ten steps [5.3e-6]
// Their lr is stored in float32, ours is a double: one rounding [4.7e-8].
inline constexpr double kGoldenLearningRate = 5e-7;
// Losses and norms of one run divided among ranks, passes and rows in another way, relative: other
// orders of summation in float32, through ten steps of AdamW [1.0e-7].
inline constexpr double kInvariance = 1e-6;

// Gradients of the tiny model with activations rounded to float16, NMSE: roundings of 2^-22 / 12,
// some dozen in a row, enlarged by weights of size one [1.8e-5].
inline constexpr double kF16Model = 2e-4;

// CUDA against the CPU in double on inputs that T holds exactly, NMSE. float32: the bounds above.
// bf16 and f16: the rounding of the output, 2^-16 / 12 * 2 = 2.8e-6 and 2^-22 / 12 * 2 = 4.3e-8.
inline constexpr double kBf16 = 1e-5;
inline constexpr double kF16 = 2e-7;
// Where a result goes through several tensors of T: half a dozen such roundings.
inline constexpr double kBf16Chain = 5e-5;
inline constexpr double kF16Chain = 8e-7;
// Attention. Its gradients also go through P and dS in T, and through delta of the rounded output,
// which cancels against dP the more the larger scores are: some units, then some tens [float32
// 4.5e-13; bf16 1.2e-5, 7.2e-5; f16 1.9e-7, 1.2e-6].
inline constexpr double kFloatCudaAttention = 5e-12;
inline constexpr double kBf16AttentionGradient = 1e-4, kBf16LargeScores = 7e-4;
inline constexpr double kF16AttentionGradient = 2e-6, kF16LargeScores = 1e-5;
// float32 sums of some thousand terms.
inline constexpr double kFloatLongSums = 1e-11;

// The program on a GPU in float32, where dense products sum in other orders than on the CPU;
// against tests/golden, and with dropout against the CPU. Units as for kGolden... above.
inline constexpr double kCudaGoldenLogits = 3e-5;    // [2.5e-6]
inline constexpr double kCudaGoldenLoss = 3e-6;      // that of the curve, which has more steps
inline constexpr double kCudaGoldenGradient = 2e-5;  // [1.3e-6]
inline constexpr double kCudaGoldenCurve = 3e-6;     // [2.8e-7]
inline constexpr double kCudaGoldenAdapter = 1e-4;   // [7.6e-6]
// bf16 and f16 beside float32. What is promised: each loss of a curve within 0.2 %, the cosine of
// each gradient tensor at least 0.998, and the loss a whole training ends with within 1 %.
inline constexpr double kHalfCurve = 2e-3;
inline constexpr double kHalfGradientCosine = 2e-3;  // 1 - cosine
inline constexpr double kHalfFinalLoss = 1e-2;

}  // namespace utrain::tolerance
