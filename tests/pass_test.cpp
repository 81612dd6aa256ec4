// The arrays of a pass against the definition of a target, token by token.
#include "data/pass.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "data/batch_plan.h"
#include "token_files.h"

namespace utrain {
namespace {

using Ints = std::vector<int32_t>;

TEST(Pass, ByHand) {
  TokenDataSet data = test::make_token_data_set({4, 2, 3});
  data.tokens = {10, 11, 12, 13, 20, 21, 30, 31, 32};
  data.loss_mask = {1, 0, 1, 1, 0, 1, 1, 1, 0};
  const Rows rows = make_rows(data, {5, true, false, "error", 1});  // {0}, {1, 2}
  const Pass pass = make_pass(data, rows, {1, 0});
  EXPECT_EQ(pass.n_tokens, 9);
  EXPECT_EQ(pass.tokens, (Ints{20, 21, 30, 31, 32, 10, 11, 12, 13}));
  EXPECT_EQ(pass.positions, (Ints{0, 1, 0, 1, 2, 0, 1, 2, 3}));
  EXPECT_EQ(pass.begin, (Ints{0, 0, 2, 2, 2, 5, 5, 5, 5}));
  EXPECT_EQ(pass.end, (Ints{2, 2, 5, 5, 5, 9, 9, 9, 9}));
  EXPECT_EQ(pass.documents, (Ints{1, 1, 2, 2, 2, 0, 0, 0, 0}));
  EXPECT_EQ(pass.target_rows, (Ints{0, 2, 6, 7}));
  EXPECT_EQ(pass.targets, (Ints{21, 31, 12, 13}));
  EXPECT_EQ(pass.rows_by_token, (Ints{5, 6, 7, 8, 0, 1, 2, 3, 4}));
  ASSERT_EQ(pass.pieces.size(), 3u);
  EXPECT_EQ(pass.pieces[2].document, 0);
  EXPECT_EQ(pass.pieces[2].first_row, 5);
  EXPECT_EQ(pass.pieces[2].length, 4);
}

TEST(Pass, RowsByTokenKeepTheOrderOfEqualTokens) {
  EXPECT_EQ(rows_by_token({7, 2, 7, 0, 2, 7}), (Ints{3, 1, 4, 0, 2, 5}));
  EXPECT_EQ(rows_by_token({}), Ints{});
}

TEST(Pass, ATruncatedDocumentEndsAtItsCut) {
  const TokenDataSet data = test::make_token_data_set({6});
  const Rows rows = make_rows(data, {4, true, false, "truncate", 1});
  const Pass pass = make_pass(data, rows, {0});
  EXPECT_EQ(pass.tokens, (Ints{0, 1, 2, 3}));
  EXPECT_EQ(pass.end, (Ints{4, 4, 4, 4}));
  EXPECT_EQ(pass.target_rows, (Ints{0, 1, 2}));
  EXPECT_EQ(pass.targets, (Ints{1, 2, 3}));
}

TEST(Pass, NoRowsMakeAnEmptyPass) {
  const TokenDataSet data = test::make_token_data_set({6});
  const Pass pass = make_pass(data, make_rows(data, {8, true, false, "error", 1}), {});
  EXPECT_EQ(pass.n_tokens, 0);
  EXPECT_EQ(pass.n_targets(), 0);
  EXPECT_TRUE(pass.tokens.empty() && pass.pieces.empty());
}

// (document, position of the target, target token) of everything a pass learns.
using Target = std::tuple<int32_t, int32_t, int32_t>;

void check_and_collect(const TokenDataSet& data, const Pass& pass, std::vector<Target>& targets) {
  const size_t n = static_cast<size_t>(pass.n_tokens);
  for (const Ints* array : {&pass.tokens, &pass.positions, &pass.begin, &pass.end, &pass.documents})
    ASSERT_EQ(array->size(), n);
  for (int32_t row = 0; row < pass.n_tokens; ++row) {
    ASSERT_TRUE(pass.begin[row] <= row && row < pass.end[row] && pass.end[row] <= pass.n_tokens);
    EXPECT_EQ(pass.positions[row], row - pass.begin[row]);
    EXPECT_EQ(pass.documents[row], pass.documents[pass.begin[row]]);
    EXPECT_EQ(pass.tokens[row],
              data.tokens[data.offsets[pass.documents[row]] + pass.positions[row]]);
  }
  ASSERT_EQ(pass.target_rows.size(), pass.targets.size());
  EXPECT_TRUE(std::is_sorted(pass.target_rows.begin(), pass.target_rows.end()));
  for (size_t m = 0; m < pass.targets.size(); ++m) {
    const int32_t row = pass.target_rows[m];
    ASSERT_LT(row + 1, pass.end[row]);
    EXPECT_EQ(pass.tokens[row + 1], pass.targets[m]);
    targets.emplace_back(pass.documents[row], pass.positions[row] + 1, pass.targets[m]);
  }
}

TEST(Pass, AStepLearnsTheSameForAnyRanksAndMicroBatches) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const TokenDataSet data = test::random_token_data_set(60, 30, seed);
    const Rows rows = make_rows(data, {40, seed % 2 == 0, true, "error", seed});
    const BatchPlan plan(data, rows, 7, true, seed);
    std::vector<Target> epoch_targets;
    for (int64_t k = 1; k <= plan.steps_per_epoch(); ++k) {
      const BatchPlan::Step step = plan.step(k);
      std::vector<Target> expected;
      check_and_collect(data, make_pass(data, rows, step.rows), expected);
      EXPECT_EQ(static_cast<int64_t>(expected.size()), step.n_targets);
      epoch_targets.insert(epoch_targets.end(), expected.begin(), expected.end());
      for (int ranks = 1; ranks <= 5; ++ranks)
        for (const int64_t micro_batch_size : {1, 2, 4}) {
          std::vector<Target> targets;
          int64_t n_tokens = 0;
          for (int rank = 0; rank < ranks; ++rank)
            for (const auto& indices : passes_of_rank(step.rows, rank, ranks, micro_batch_size)) {
              const Pass pass = make_pass(data, rows, indices);
              check_and_collect(data, pass, targets);
              n_tokens += pass.n_tokens;
            }
          EXPECT_EQ(targets, expected);
          EXPECT_EQ(n_tokens, step.n_tokens);
        }
    }
    // All of the data set's targets, once.
    std::vector<Target> all;
    for (int32_t d = 0; d < data.n_documents(); ++d)
      for (int64_t i = data.offsets[d] + 1; i < data.offsets[d + 1]; ++i)
        if (data.loss_mask[i])
          all.emplace_back(d, static_cast<int32_t>(i - data.offsets[d]), data.tokens[i]);
    std::sort(epoch_targets.begin(), epoch_targets.end());
    EXPECT_EQ(epoch_targets, all);
  }
}

}  // namespace
}  // namespace utrain
