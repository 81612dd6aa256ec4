// Checksums of tensors on the GPU, with 16-byte and 4-byte loads, against their definition.
#include "checksum_cases.h"
#include "needs_gpu.h"

namespace utrain {
namespace {

class CudaChecksum : public testing::Test {
 protected:
  void SetUp() override {
    UTRAIN_NEEDS_GPU();
    backend_ = make_cuda_backend(DType::bf16);
  }
  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaChecksum, IsWhatItsDefinitionSays) {
  expect_definition(*backend_);
}
TEST_F(CudaChecksum, IsAddedToWhatWasThere) {
  expect_added(*backend_);
}
TEST_F(CudaChecksum, ChangesWithEveryBit) {
  expect_every_bit_counts(*backend_);
}
TEST_F(CudaChecksum, IsOfBytesWhateverTheirDType) {
  expect_dtype_does_not_matter(*backend_);
}

// Many blocks that add to the sum at once.
TEST_F(CudaChecksum, OfALargeTensorIsTheSameTwice) {
  const Words words = some_words(50000017);
  ChecksumOperands operands(*backend_, words);
  const double wanted = checksum_of(words);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(operands.sum(), wanted);
  operands.flip(32 * 49999999 + 31);
  EXPECT_NE(operands.sum(), wanted);
}

}  // namespace
}  // namespace utrain
