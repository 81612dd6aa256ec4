#include "data/pass.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace utrain {

namespace {

void append(Pass& pass, const TokenDataSet& data, const Piece& piece) {
  const int64_t first_row = pass.n_tokens, offset = data.offsets[piece.document];
  ASSERT(first_row + piece.length <= std::numeric_limits<int32_t>::max());
  ASSERT(piece.document <= std::numeric_limits<int32_t>::max());
  for (int64_t i = 0; i < piece.length; ++i) {
    pass.tokens.push_back(data.tokens[offset + i]);
    pass.positions.push_back(static_cast<int32_t>(i));
    pass.begin.push_back(static_cast<int32_t>(first_row));
    pass.end.push_back(static_cast<int32_t>(first_row + piece.length));
    pass.documents.push_back(static_cast<int32_t>(piece.document));
  }
  for (int64_t i = 1; i < piece.length; ++i) {
    if (!data.loss_mask[offset + i]) continue;
    pass.target_rows.push_back(static_cast<int32_t>(first_row + i - 1));
    pass.targets.push_back(data.tokens[offset + i]);
  }
  pass.pieces.push_back({piece.document, first_row, piece.length});
  pass.n_tokens += piece.length;
}

}  // namespace

std::vector<int32_t> rows_by_token(const std::vector<int32_t>& tokens) {
  // Token and row in one number: a plain sort of these is the stable one.
  std::vector<int64_t> keys(tokens.size());
  for (size_t n = 0; n < keys.size(); ++n) {
    keys[n] = (static_cast<int64_t>(tokens[n]) << 32) + static_cast<int64_t>(n);
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int32_t> rows(keys.size());
  for (size_t n = 0; n < keys.size(); ++n) rows[n] = static_cast<int32_t>(keys[n] & 0xFFFFFFFF);
  return rows;
}

Pass make_pass(const TokenDataSet& data, const Rows& rows, const std::vector<int64_t>& indices) {
  Pass pass;
  for (const int64_t row : indices)
    for (const Piece& piece : rows.rows[row]) append(pass, data, piece);
  pass.rows_by_token = rows_by_token(pass.tokens);
  return pass;
}

}  // namespace utrain
