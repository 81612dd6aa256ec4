#include "data/rows.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "core/permutation.h"

namespace utrain {

namespace {

void refuse_too_long(const TokenDataSet& data, int64_t seq_len) {
  int64_t n_too_long = 0, longest = -1;
  for (int64_t d = 0; d < data.n_documents(); ++d) {
    if (data.length(d) <= seq_len) continue;
    ++n_too_long;
    if (longest < 0 || data.length(d) > data.length(longest)) longest = d;
  }
  if (n_too_long == 0) return;
  fail(ExitCode::usage, data.path,
       fmt::format("{} of {} documents are longer than data.seq_len = {}, the longest (document "
                   "{}) has {} tokens",
                   n_too_long, data.n_documents(), seq_len, longest, data.length(longest)),
       fmt::format("set data.seq_len = {}, or data.too_long = \"truncate\" or \"drop\"",
                   data.length(longest)));
}

// Online best fit: the open row with the least space that still fits, of equals the oldest.
class Packer {
 public:
  Packer(std::vector<std::vector<Piece>>& rows, int64_t seq_len) : rows_(rows), seq_len_(seq_len) {}

  void place(const Piece& piece) {
    int64_t space = seq_len_, row = static_cast<int64_t>(rows_.size());
    const auto fit = open_.lower_bound({piece.length, 0});
    if (fit == open_.end()) {
      rows_.emplace_back();
    } else {
      std::tie(space, row) = *fit;
      open_.erase(fit);
    }
    rows_[row].push_back(piece);
    if (space > piece.length) open_.emplace(space - piece.length, row);
  }

 private:
  std::vector<std::vector<Piece>>& rows_;
  int64_t seq_len_;
  std::set<std::pair<int64_t, int64_t>> open_;  // (space in tokens, row)
};

}  // namespace

Rows make_rows(const TokenDataSet& data, const RowOptions& options) {
  ASSERT(options.seq_len >= 1);
  if (options.too_long == "error") refuse_too_long(data, options.seq_len);

  const std::vector<int64_t> order =
      options.shuffle ? permutation(data.n_documents(), permutation_key(options.seed))
                      : file_order(data.n_documents());

  Rows result;
  Packer packer(result.rows, options.seq_len);
  for (const int64_t d : order) {
    const bool too_long = data.length(d) > options.seq_len;
    if (too_long && options.too_long == "drop") {
      ++result.n_too_long_dropped;
      continue;
    }
    result.n_truncated += too_long;
    const Piece piece{d, std::min(data.length(d), options.seq_len)};
    const int64_t n_targets = data.n_targets(d, piece.length);
    if (n_targets == 0) {
      ++result.n_without_target;
      continue;
    }
    if (options.packing)
      packer.place(piece);
    else
      result.rows.push_back({piece});
    ++result.n_documents_kept;
    result.n_tokens += piece.length;
    result.n_targets += n_targets;
  }
  if (result.rows.empty())
    fail(ExitCode::bad_file, data.path,
         fmt::format("no document has a target: of {}, {} are without one within data.seq_len = "
                     "{}, {} are too "
                     "long and dropped",
                     data.n_documents(), result.n_without_target, options.seq_len,
                     result.n_too_long_dropped),
         "check /loss_mask (tools/inspect shows it) and data.seq_len");
  return result;
}

void keep_first_rows(Rows& rows, const TokenDataSet& data, int64_t n) {
  if (n >= rows.n_rows()) return;
  rows.rows.resize(static_cast<size_t>(n));
  rows.n_documents_kept = rows.n_tokens = rows.n_targets = 0;
  for (const auto& row : rows.rows) {
    for (const Piece& piece : row) {
      ++rows.n_documents_kept;
      rows.n_tokens += piece.length;
      rows.n_targets += data.n_targets(piece.document, piece.length);
    }
  }
}

}  // namespace utrain
