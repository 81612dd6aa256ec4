// Documents become rows of at most seq_len tokens, once per run: one document a row, or packed by
// online best fit. A function of (data set, options) alone, never of ranks. Attention never crosses
// the pieces of a row.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/token_data_set.h"

namespace utrain {

// The first `length` tokens of a document.
struct Piece {
  int64_t document = 0;
  int64_t length = 0;
};

struct RowOptions {
  int64_t seq_len = 2048;
  bool packing = true;
  bool shuffle = true;  // documents permuted by the seed before they are placed; else file order
  std::string too_long = "error";  // "error" | "truncate" | "drop": documents longer than seq_len
  uint64_t seed = 3407;
};

struct Rows {
  std::vector<std::vector<Piece>> rows;  // none is empty; every piece has a target
  int64_t n_documents_kept = 0;          // pieces in all
  int64_t n_too_long_dropped = 0;
  int64_t n_truncated = 0;  // cut to seq_len, those included that were left without a target by it
  int64_t n_without_target = 0;  // dropped
  int64_t n_tokens = 0;          // of all rows
  int64_t n_targets = 0;

  int64_t n_rows() const { return static_cast<int64_t>(rows.size()); }
};

// Throws usage (2) where documents are too long and too_long = "error", bad_file (3) where no
// target is left.
Rows make_rows(const TokenDataSet& data, const RowOptions& options);

// Only the first n rows stay, and the counts are theirs.
void keep_first_rows(Rows& rows, const TokenDataSet& data, int64_t n);

}  // namespace utrain
