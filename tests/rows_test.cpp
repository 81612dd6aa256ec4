// Rows against a brute-force best fit, and the promises of every set of rows on random data.
#include "data/rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "core/permutation.h"
#include "token_files.h"

namespace utrain {
namespace {

using Lengths = std::vector<std::vector<int64_t>>;

RowOptions options_of(int64_t seq_len, bool packing, bool shuffle, const char* too_long = "error",
                      uint64_t seed = 1) {
  return {seq_len, packing, shuffle, too_long, seed};
}

std::vector<std::vector<int64_t>> documents_of(const Rows& rows) {
  std::vector<std::vector<int64_t>> result;
  for (const auto& row : rows.rows) {
    result.emplace_back();
    for (const Piece& piece : row) result.back().push_back(piece.document);
  }
  return result;
}

// Looks at every row for every document.
std::vector<std::vector<int64_t>> brute_force_best_fit(const TokenDataSet& data,
                                                       const std::vector<int64_t>& order,
                                                       int64_t seq_len) {
  std::vector<std::vector<int64_t>> rows;
  std::vector<int64_t> space;
  for (const int64_t d : order) {
    const int64_t length = std::min(data.length(d), seq_len);
    if (data.n_targets(d, length) == 0) continue;
    int64_t best = -1;
    for (int64_t r = 0; r < static_cast<int64_t>(rows.size()); ++r)
      if (space[r] >= length && (best < 0 || space[r] < space[best])) best = r;
    if (best < 0) {
      best = static_cast<int64_t>(rows.size());
      rows.emplace_back();
      space.push_back(seq_len);
    }
    rows[best].push_back(d);
    space[best] -= length;
  }
  return rows;
}

TEST(Permutation, IsAPermutationAndAFunctionOfItsKey) {
  for (const int64_t n : {0, 1, 2, 7, 1000}) {
    std::vector<int64_t> order = permutation(n, 5);
    EXPECT_EQ(order, permutation(n, 5));
    std::sort(order.begin(), order.end());
    EXPECT_EQ(order, file_order(n));
  }
  EXPECT_NE(permutation(100, 5), permutation(100, 6));
  EXPECT_NE(permutation_key(1, 0), permutation_key(1, 1));
  EXPECT_NE(permutation_key(1, 0), permutation_key(2, 0));
  EXPECT_NE(permutation_key(1), permutation_key(1, 0));
}

// The order of rows is part of every checkpoint and golden curve: it may not change.
TEST(Permutation, StaysWhatItIs) {
  EXPECT_EQ(permutation(10, permutation_key(3407)),
            (std::vector<int64_t>{6, 1, 3, 2, 8, 9, 0, 4, 7, 5}));
  EXPECT_EQ(permutation(10, permutation_key(3407, 0)),
            (std::vector<int64_t>{6, 4, 3, 7, 2, 1, 0, 5, 8, 9}));
}

TEST(Permutation, EveryOrderIsEquallyLikely) {
  std::map<std::vector<int64_t>, int> counts;
  constexpr int kDraws = 24000;
  for (int seed = 0; seed < kDraws; ++seed) ++counts[permutation(4, permutation_key(seed, 0))];
  ASSERT_EQ(counts.size(), 24u);
  double chi_squared = 0;  // 23 degrees of freedom: above 49.7 once in a thousand
  for (const auto& [order, count] : counts)
    chi_squared += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_squared, 49.7);
}

TEST(Permutation, LargeBoundsAreDrawnWithoutBias) {
  // floor(w * 3 / 4) over all words w meets multiples of 3 twice as often as other numbers.
  const uint64_t bound = 0xC000000000000000ull;
  int n_low = 0;
  for (int i = 0; i < 30000; ++i) {
    const uint64_t draw = bounded(9, i, bound);
    ASSERT_LT(draw, bound);
    n_low += draw % 3 == 0;
  }
  EXPECT_NEAR(n_low, 10000, 400);
}

TEST(Rows, OneDocumentARowInFileOrder) {
  const Rows rows = make_rows(test::make_token_data_set({3, 5, 2}), options_of(8, false, false));
  EXPECT_EQ(documents_of(rows), (Lengths{{0}, {1}, {2}}));
  EXPECT_EQ(rows.n_documents_kept, 3);
  EXPECT_EQ(rows.n_tokens, 10);
  EXPECT_EQ(rows.n_targets, 7);
}

TEST(Rows, BestFitByHand) {
  // Spaces after 6, 7, 5 of 10: 4, 3, 5. 3 fits row 1 exactly; 2 goes to row 0 (space 4 < 5); then
  // 2 again: row 0 has space 2; 3 to row 2; 2 fits row 2; the last opens a row.
  const Rows rows = make_rows(test::make_token_data_set({6, 7, 5, 3, 2, 2, 3, 2, 2}),
                              options_of(10, true, false));
  EXPECT_EQ(documents_of(rows), (Lengths{{0, 4, 5}, {1, 3}, {2, 6, 7}, {8}}));
}

TEST(Rows, TiesGoToTheOldestRow) {
  const Rows rows =
      make_rows(test::make_token_data_set({7, 7, 7, 3, 3, 3}), options_of(10, true, false));
  EXPECT_EQ(documents_of(rows), (Lengths{{0, 3}, {1, 4}, {2, 5}}));
}

TEST(Rows, PackingIsBruteForceBestFit) {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 100; ++trial) {
    const int64_t longest = 2 + random() % 60, seq_len = longest + random() % 100;
    const TokenDataSet data = test::random_token_data_set(20 + random() % 200, longest, random());
    const bool shuffle = trial % 2;
    const uint64_t seed = random();
    const auto order = shuffle ? permutation(data.n_documents(), permutation_key(seed))
                               : file_order(data.n_documents());
    const Rows rows = make_rows(data, options_of(seq_len, true, shuffle, "error", seed));
    EXPECT_EQ(documents_of(rows), brute_force_best_fit(data, order, seq_len));
  }
}

TEST(Rows, EveryDocumentWithATargetIsThereOnceAndCountsAddUp) {
  std::mt19937_64 random(4);
  for (int trial = 0; trial < 100; ++trial) {
    const TokenDataSet data = test::random_token_data_set(100, 50, random());
    for (const char* too_long : {"truncate", "drop"}) {
      const int64_t seq_len = 10 + random() % 50;
      const Rows rows =
          make_rows(data, options_of(seq_len, trial % 2, trial % 3, too_long, random()));
      std::set<int64_t> seen;
      int64_t n_tokens = 0, n_targets = 0;
      for (const auto& row : rows.rows) {
        ASSERT_FALSE(row.empty());
        int64_t row_tokens = 0;
        for (const Piece& piece : row) {
          EXPECT_TRUE(seen.insert(piece.document).second);
          EXPECT_EQ(piece.length, std::min(data.length(piece.document), seq_len));
          EXPECT_GT(data.n_targets(piece.document, piece.length), 0);
          row_tokens += piece.length;
          n_targets += data.n_targets(piece.document, piece.length);
        }
        EXPECT_LE(row_tokens, seq_len);
        n_tokens += row_tokens;
      }
      int64_t n_long = 0, n_without = 0;
      for (int64_t d = 0; d < data.n_documents(); ++d) {
        const bool is_long = data.length(d) > seq_len;
        const bool dropped = is_long && too_long == std::string("drop");
        n_long += is_long;
        if (dropped) {
          EXPECT_EQ(seen.count(d), 0u);
        } else {
          const bool has_target = data.n_targets(d, std::min(data.length(d), seq_len)) > 0;
          n_without += !has_target;
          EXPECT_EQ(seen.count(d), has_target ? 1u : 0u);
        }
      }
      EXPECT_EQ(rows.n_tokens, n_tokens);
      EXPECT_EQ(rows.n_targets, n_targets);
      EXPECT_EQ(rows.n_without_target, n_without);
      EXPECT_EQ(rows.n_documents_kept, static_cast<int64_t>(seen.size()));
      const bool drop = too_long == std::string("drop");
      EXPECT_EQ(rows.n_too_long_dropped, drop ? n_long : 0);
      EXPECT_EQ(rows.n_truncated, drop ? 0 : n_long);
      EXPECT_EQ(rows.n_documents_kept + rows.n_without_target + rows.n_too_long_dropped,
                data.n_documents());
    }
  }
}

TEST(Rows, TheFirstRowsHaveCountsOfTheirOwn) {
  const TokenDataSet data = test::random_token_data_set(100, 50, 9);
  const Rows all = make_rows(data, options_of(64, true, true, "drop"));
  Rows some = all;
  keep_first_rows(some, data, all.n_rows());
  EXPECT_EQ(some.n_targets, all.n_targets);
  keep_first_rows(some, data, 3);
  ASSERT_EQ(some.n_rows(), 3);
  int64_t n_tokens = 0, n_targets = 0;
  for (const auto& row : some.rows) {
    for (const Piece& piece : row) {
      n_tokens += piece.length;
      n_targets += data.n_targets(piece.document, piece.length);
    }
  }
  EXPECT_EQ(some.n_tokens, n_tokens);
  EXPECT_EQ(some.n_targets, n_targets);
  EXPECT_LT(some.n_targets, all.n_targets);
}

TEST(Rows, TheSeedDecidesTheOrder) {
  const TokenDataSet data = test::random_token_data_set(50, 20, 1);
  const auto with_seed = [&](uint64_t seed, bool shuffle) {
    return documents_of(make_rows(data, options_of(32, true, shuffle, "error", seed)));
  };
  EXPECT_EQ(with_seed(1, true), with_seed(1, true));
  EXPECT_NE(with_seed(1, true), with_seed(2, true));
  EXPECT_EQ(with_seed(1, false), with_seed(2, false));
}

TEST(Rows, TheMaskOfAFirstTokenIsIgnored) {
  TokenDataSet data = test::make_token_data_set({3, 3, 1});
  data.loss_mask = {1, 0, 0, 1, 0, 1, 1};
  const Rows rows = make_rows(data, options_of(8, false, false));
  EXPECT_EQ(documents_of(rows), (Lengths{{1}}));
  EXPECT_EQ(rows.n_without_target, 2);
  EXPECT_EQ(rows.n_targets, 1);
}

TEST(Rows, ATruncatedDocumentMayLoseItsTargets) {
  TokenDataSet data = test::make_token_data_set({6, 4});
  data.loss_mask = {0, 0, 0, 0, 1, 1, 0, 1, 1, 1};
  const Rows rows = make_rows(data, options_of(4, true, false, "truncate"));
  EXPECT_EQ(documents_of(rows), (Lengths{{1}}));
  EXPECT_EQ(rows.n_truncated, 1);
  EXPECT_EQ(rows.n_without_target, 1);
}

TEST(Rows, TooLongIsAnErrorThatNamesHowManyAndTheLongest) {
  const TokenDataSet data = test::make_token_data_set({3, 9, 12, 8});
  try {
    make_rows(data, options_of(8, true, true));
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    const std::string message = error.what();
    for (const char* part :
         {"2 of 4", "data.seq_len = 8", "document 2", "12 tokens", "truncate", "drop"})
      EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  EXPECT_NO_THROW(make_rows(data, options_of(12, true, true)));
}

TEST(Rows, NoTargetAtAllIsABadFile) {
  TokenDataSet data = test::make_token_data_set({3, 9});
  const auto expect_refused = [&](const RowOptions& options) {
    try {
      make_rows(data, options);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_file);
      EXPECT_NE(std::string(error.what()).find("no document has a target"), std::string::npos);
    }
  };
  expect_refused(options_of(1, true, true, "truncate"));
  expect_refused(options_of(2, true, true, "drop"));
  data.loss_mask.assign(12, 0);
  expect_refused(options_of(16, false, true));
}

}  // namespace
}  // namespace utrain
