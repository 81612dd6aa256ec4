// The numbers of a token data set, as HDF5 hands them over: the input is what the file says of
// itself, the offsets, then tokens with their mask. What is accepted can be made into rows.
#include <cstring>

#include "data/rows.h"
#include "data/token_data_set.h"
#include "fuzz.h"

using namespace utrain;

namespace {

class Numbers {
 public:
  Numbers(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  template <class T>
  T take() {
    T value = {};
    const size_t n = std::min(left_, sizeof(T));
    if (n > 0) std::memcpy(&value, data_, n);
    data_ += n, left_ -= n;
    return value;
  }
  bool empty() const { return left_ == 0; }

 private:
  const uint8_t* data_;
  size_t left_;
};

void check_rows(const TokenDataSet& data, const RowOptions& options) {
  const Rows rows = make_rows(data, options);
  int64_t n_tokens = 0, n_targets = 0;
  for (const std::vector<Piece>& row : rows.rows) {
    int64_t length = 0;
    for (const Piece& piece : row) {
      fuzz::expect(piece.document >= 0 && piece.document < data.n_documents(), "a document");
      fuzz::expect(piece.length >= 1 && piece.length <= data.length(piece.document), "its tokens");
      length += piece.length;
      n_targets += data.n_targets(piece.document, piece.length);
    }
    const bool fits = length <= options.seq_len && !row.empty();
    fuzz::expect(fits, "a row has 1 to seq_len tokens");
    n_tokens += length;
  }
  fuzz::expect(n_tokens == rows.n_tokens && n_targets == rows.n_targets, "counts");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  Numbers numbers(bytes, size);
  TokenFileFacts facts;
  facts.format_version = numbers.take<int8_t>();
  facts.vocab_size = numbers.take<int64_t>();
  const int64_t model_vocab_size = numbers.take<uint16_t>(), mask_more = numbers.take<int8_t>();
  facts.n_offsets = numbers.take<uint8_t>();
  RowOptions options;
  options.seq_len = 1 + numbers.take<uint8_t>();
  const auto bits = numbers.take<uint8_t>();
  options.packing = bits & 1;
  options.shuffle = bits & 2;
  options.too_long = bits & 4 ? "drop" : bits & 8 ? "truncate" : "error";

  TokenDataSet data;
  data.path = "tokens.h5";
  for (int64_t i = 0; i < facts.n_offsets; ++i) data.offsets.push_back(numbers.take<int64_t>());
  while (!numbers.empty()) {
    data.tokens.push_back(numbers.take<int32_t>());
    data.loss_mask.push_back(numbers.take<uint8_t>());
  }
  data.vocab_size = facts.vocab_size;
  facts.n_tokens = data.n_tokens();
  facts.n_mask = facts.n_tokens + mask_more;
  const bool sound = fuzz::accepts({ExitCode::bad_file}, [&] {
    check_facts(data.path, facts, model_vocab_size);
    check_arrays(data);
  });
  if (!sound) return 0;
  fuzz::expect(facts.n_mask == facts.n_tokens && data.offsets.size() >= 2, "counts agree");
  for (const int32_t token : data.tokens)
    fuzz::expect(token >= 0 && token < model_vocab_size, "every token has a row of the embedding");
  fuzz::accepts({ExitCode::usage, ExitCode::bad_file}, [&] { check_rows(data, options); });
  return 0;
}
