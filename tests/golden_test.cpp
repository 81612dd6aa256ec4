// The whole program on the CPU against transformers + PEFT in float32, for any number of ranks,
// rows a pass, packing and recomputation.
#include "golden_case.h"
#include "launch.h"

namespace utrain {
namespace {

const std::vector<std::string> kRecompute = {"none", "mlp", "block"};

std::vector<GoldenVariant> whole_matrix() {
  std::vector<GoldenVariant> all;
  for (const char* name : {"llama", "qwen2"})
    for (const int ranks : {1, 2, 3, 4})
      for (const int micro : {1, 2, 4})
        for (const bool packing : {false, true})
          for (const std::string& recompute : kRecompute)
            all.push_back({name, ranks, micro, packing, recompute});
  return all;
}

// Of the matrix a part in which every two values of two options meet.
std::vector<GoldenVariant> every_pair() {
  std::vector<GoldenVariant> some;
  for (const char* name : {"llama", "qwen2"})
    for (size_t ranks = 1; ranks <= 4; ++ranks)
      for (size_t i = 0; i < 3; ++i)
        some.push_back({name, static_cast<int>(ranks), 1 << i, (ranks + i) % 2 == 0,
                        kRecompute[(ranks + i) % 3]});
  return some;
}

std::vector<GoldenVariant> own_cases() {
  std::vector<GoldenVariant> all;
  for (const char* name : {"mistral_window", "qwen3", "llama_bias_rslora", "llama_tied_down"})
    for (const int ranks : {1, 3})
      for (const bool packing : {false, true})
        all.push_back({name, ranks, ranks == 1 ? 4 : 2, packing, packing ? "block" : "none"});
  return all;
}

std::vector<GoldenVariant> full_fine_tuning() {
  std::vector<GoldenVariant> all;
  for (const char* name : {"llama_full", "qwen2_full"})
    for (const int ranks : {1, 2, 4})
      for (const char* strategy : {"ddp", "zero1", "zero2", "zero3"})
        all.push_back({name, ranks, ranks == 2 ? 1 : 8, ranks == 4,
                       kRecompute[static_cast<size_t>(ranks) % 3], "auto", strategy});
  return all;
}

// Every strategy on every number of ranks, with one pass a step and with several.
std::vector<GoldenVariant> strategies() {
  std::vector<GoldenVariant> all;
  for (const char* name : {"llama", "qwen2"})
    for (int ranks = 1; ranks <= 4; ++ranks)
      for (const char* strategy : {"zero1", "zero2", "zero3"})
        all.push_back({name, ranks, name[0] == 'l' ? 1 : 8 / ranks + 1, ranks % 2 == 0,
                       kRecompute[static_cast<size_t>(ranks) % 3], "auto", strategy});
  return all;
}

std::vector<GoldenVariant> offload() {
  std::vector<GoldenVariant> all;
  for (const char* name : {"llama", "qwen2"})
    for (int ranks = 1; ranks <= 4; ++ranks)
      all.push_back({name, ranks, 1 << ranks % 3, ranks % 2 == 0, "offload", "auto",
                     ranks == 3 ? "zero3" : "ddp"});
  all.push_back({"llama_full", 2, 1, false, "offload"});
  return all;
}

constexpr GoldenBounds kBounds = {tolerance::kGoldenLogits, tolerance::kGoldenLoss,
                                  tolerance::kGoldenGradient, tolerance::kGoldenCurve,
                                  tolerance::kGoldenAdapter};

class GoldenRun : public GoldenCase {};
TEST_P(GoldenRun, TrainsAsTransformersAndPeft) {
  expect_training(kBounds);
}

class GoldenDump : public GoldenCase {};
TEST_P(GoldenDump, HasTheirLogitsLossAndGradients) {
  expect_dump(kBounds);
}

INSTANTIATE_TEST_SUITE_P(Matrix, GoldenRun, testing::ValuesIn(whole_matrix()), text_of);
INSTANTIATE_TEST_SUITE_P(OwnCases, GoldenRun, testing::ValuesIn(own_cases()), text_of);
INSTANTIATE_TEST_SUITE_P(Full, GoldenRun, testing::ValuesIn(full_fine_tuning()), text_of);
INSTANTIATE_TEST_SUITE_P(Full, GoldenDump, testing::ValuesIn(full_fine_tuning()), text_of);
INSTANTIATE_TEST_SUITE_P(Strategies, GoldenRun, testing::ValuesIn(strategies()), text_of);
INSTANTIATE_TEST_SUITE_P(Strategies, GoldenDump, testing::ValuesIn(strategies()), text_of);
INSTANTIATE_TEST_SUITE_P(Offload, GoldenRun, testing::ValuesIn(offload()), text_of);
INSTANTIATE_TEST_SUITE_P(Offload, GoldenDump, testing::ValuesIn(offload()), text_of);
INSTANTIATE_TEST_SUITE_P(Pairs, GoldenDump, testing::ValuesIn(every_pair()), text_of);
// A minute more: --gtest_also_run_disabled_tests.
INSTANTIATE_TEST_SUITE_P(DISABLED_Matrix, GoldenDump, testing::ValuesIn(whole_matrix()), text_of);
INSTANTIATE_TEST_SUITE_P(OwnCases, GoldenDump, testing::ValuesIn(own_cases()), text_of);

}  // namespace
}  // namespace utrain
