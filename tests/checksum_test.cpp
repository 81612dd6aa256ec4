// Checksums of tensors: exact, of every bit, in any order.
#include "checksum_cases.h"

#include <omp.h>

namespace utrain {
namespace {

class Checksum : public testing::TestWithParam<DType> {
 protected:
  std::unique_ptr<Backend> backend_ = make_cpu_backend(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Backends, Checksum,
                         testing::Values(DType::f32, DType::f64, DType::c128, DType::bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(Checksum, IsWhatItsDefinitionSays) {
  expect_definition(*backend_);
}
TEST_P(Checksum, IsAddedToWhatWasThere) {
  expect_added(*backend_);
}
TEST_P(Checksum, ChangesWithEveryBit) {
  expect_every_bit_counts(*backend_);
}
TEST_P(Checksum, IsOfBytesWhateverTheirDType) {
  expect_dtype_does_not_matter(*backend_);
}

TEST_P(Checksum, ThreadsDoNotMatter) {
  ChecksumOperands operands(*backend_, some_words(100003));
  const int before = omp_get_max_threads();
  for (const int threads : {1, 2, 3}) {
    omp_set_num_threads(threads);
    EXPECT_EQ(operands.sum(), checksum_of(some_words(100003)));
  }
  omp_set_num_threads(before);
}

TEST_P(Checksum, RefusesWhatItIsNotMadeFor) {
  ChecksumOperands operands(*backend_, some_words(8));
  EXPECT_THROW(operands.sum(NAN), Error);
  EXPECT_THROW(operands.sum(-1.0), Error);
  double sum = 0.0;
  uint16_t x[4] = {};
  const Tensor of = make_tensor(&sum, DType::f64, 1, 1);
  EXPECT_THROW(backend_->checksum(of, make_tensor(x, DType::bf16, 1, 3)), Error);
  EXPECT_THROW(backend_->checksum(of, make_tensor(x, DType::bf16, 2, 2).columns(0, 1)), Error);
}

}  // namespace
}  // namespace utrain
