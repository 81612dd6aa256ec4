// Steps and passes: every row once an epoch, and the same steps however they are dealt.
#include "data/batch_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/permutation.h"
#include "token_files.h"

namespace utrain {
namespace {

using Indices = std::vector<int64_t>;

struct Case {
  TokenDataSet data;
  Rows rows;
};

Case random_case(uint64_t seed) {
  Case result{test::random_token_data_set(20 + seed % 80, 30, seed), {}};
  result.rows = make_rows(result.data, {40, seed % 2 == 0, true, "error", seed});
  return result;
}

TEST(BatchPlan, FileOrderWithAShortLastStep) {
  const TokenDataSet data = test::make_token_data_set({2, 3, 4, 5, 6});
  const Rows rows = make_rows(data, {8, false, false, "error", 1});
  const BatchPlan plan(data, rows, 2, false, 1);
  EXPECT_EQ(plan.steps_per_epoch(), 3);
  for (const int64_t first : {1, 4, 7}) {
    EXPECT_EQ(plan.step(first).rows, (Indices{0, 1}));
    EXPECT_EQ(plan.step(first + 1).rows, (Indices{2, 3}));
    EXPECT_EQ(plan.step(first + 2).rows, (Indices{4}));
    EXPECT_EQ(plan.step(first).epoch, first / 3);
    EXPECT_EQ(plan.step(first + 2).epoch, first / 3);
  }
  EXPECT_EQ(plan.step(2).n_tokens, 9);
  EXPECT_EQ(plan.step(2).n_targets, 7);
}

TEST(BatchPlan, EveryRowOnceAnEpoch) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const Case c = random_case(seed);
    for (const int64_t global_batch_size : {1, 3, 8, 1000}) {
      const BatchPlan plan(c.data, c.rows, global_batch_size, true, seed);
      const int64_t n = plan.steps_per_epoch();
      EXPECT_EQ(n, (c.rows.n_rows() + global_batch_size - 1) / global_batch_size);
      Indices earlier;
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        Indices order;
        int64_t n_tokens = 0, n_targets = 0;
        for (int64_t k = epoch * n + 1; k <= (epoch + 1) * n; ++k) {
          const BatchPlan::Step step = plan.step(k);
          EXPECT_EQ(step.epoch, epoch);
          if (k < (epoch + 1) * n) {
            EXPECT_EQ(step.rows.size(), static_cast<size_t>(global_batch_size));
          }
          order.insert(order.end(), step.rows.begin(), step.rows.end());
          n_tokens += step.n_tokens;
          n_targets += step.n_targets;
        }
        EXPECT_EQ(order, permutation(c.rows.n_rows(), permutation_key(seed, epoch)));
        EXPECT_EQ(n_tokens, c.rows.n_tokens);
        EXPECT_EQ(n_targets, c.rows.n_targets);
        if (c.rows.n_rows() > 4) {
          EXPECT_NE(order, earlier);
        }
        earlier = order;
      }
    }
  }
}

TEST(BatchPlan, AStepDoesNotDependOnTheStepsAskedBefore) {
  const Case c = random_case(8);
  const BatchPlan plan(c.data, c.rows, 3, true, 5);
  for (const int64_t k : {40, 1, 17, 2, 39, 40, 1000000})
    EXPECT_EQ(plan.step(k).rows, BatchPlan(c.data, c.rows, 3, true, 5).step(k).rows);
}

TEST(BatchPlan, TheEpochsOrderDoesNotDependOnTheBatchSize) {
  const Case c = random_case(9);
  const Indices all = BatchPlan(c.data, c.rows, 1000, true, 5).step(2).rows;
  const BatchPlan plan(c.data, c.rows, 4, true, 5);
  Indices order;
  for (int64_t k = plan.steps_per_epoch() + 1; k <= 2 * plan.steps_per_epoch(); ++k)
    for (const int64_t row : plan.step(k).rows) order.push_back(row);
  EXPECT_EQ(order, all);
}

TEST(PassesOfRank, ByHand) {
  using Passes = std::vector<Indices>;
  const Indices rows = {5, 6, 7, 8, 9};
  EXPECT_EQ(passes_of_rank(rows, 0, 1, 2), (Passes{{5, 6}, {7, 8}, {9}}));
  EXPECT_EQ(passes_of_rank(rows, 0, 2, 2), (Passes{{5, 6}, {7}}));
  EXPECT_EQ(passes_of_rank(rows, 1, 2, 2), (Passes{{8, 9}, {}}));
  EXPECT_EQ(passes_of_rank(rows, 3, 7, 4), (Passes{{8}}));
  EXPECT_EQ(passes_of_rank(rows, 6, 7, 4), (Passes{{}}));
}

TEST(PassesOfRank, RanksTogetherAreTheStepWhateverTheNumbers) {
  for (int64_t n = 0; n <= 40; ++n) {
    const Indices rows = permutation(n, 1);
    for (int ranks = 1; ranks <= 9; ++ranks)
      for (const int64_t micro_batch_size : {1, 2, 3, 5, 64}) {
        Indices together;
        size_t n_passes = 0, least = rows.size(), most = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const auto passes = passes_of_rank(rows, rank, ranks, micro_batch_size);
          if (rank == 0) n_passes = passes.size();
          EXPECT_EQ(passes.size(), n_passes);
          size_t n_of_rank = 0;
          for (const Indices& pass : passes) {
            EXPECT_LE(pass.size(), static_cast<size_t>(micro_batch_size));
            n_of_rank += pass.size();
            together.insert(together.end(), pass.begin(), pass.end());
          }
          EXPECT_LE(n_of_rank, least);  // the first ranks have the larger blocks
          least = std::min(least, n_of_rank);
          most = std::max(most, n_of_rank);
        }
        EXPECT_EQ(together, rows);
        EXPECT_LE(most - least, 1u);
        EXPECT_EQ(n_passes, (most + micro_batch_size - 1) / micro_batch_size);
      }
  }
}

}  // namespace
}  // namespace utrain
