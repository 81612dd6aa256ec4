// The arrays of one pass of a rank on the host: what TokenBatch (backend.h) points to on the
// device. Documents lie one after the other without padding: N = n_tokens. Who wants static shapes
// pads behind them.
#pragma once

#include <cstdint>
#include <vector>

#include "data/rows.h"

namespace utrain {

struct PassDocument {
  int64_t document = 0;   // index in the data set
  int64_t first_row = 0;  // of the pass
  int64_t length = 0;     // tokens
};

struct Pass {
  int64_t n_tokens = 0;                // N
  std::vector<int32_t> tokens;         // [N]
  std::vector<int32_t> positions;      // [N] restart at 0 in each document
  std::vector<int32_t> begin;          // [N] first row of the row's document
  std::vector<int32_t> end;            // [N] one past its last row
  std::vector<int32_t> documents;      // [N] index in the data set
  std::vector<int32_t> target_rows;    // [M] ascending
  std::vector<int32_t> targets;        // [M] what that row must predict: the next token
  std::vector<int32_t> rows_by_token;  // [N] in the order of their tokens, equal ones ascending
  std::vector<PassDocument> pieces;    // in order

  int64_t n_targets() const { return static_cast<int64_t>(targets.size()); }  // M
};

std::vector<int32_t> rows_by_token(const std::vector<int32_t>& tokens);

// indices into Rows::rows, e.g. one pass of passes_of_rank; none gives an empty pass.
Pass make_pass(const TokenDataSet& data, const Rows& rows, const std::vector<int64_t>& indices);

}  // namespace utrain
