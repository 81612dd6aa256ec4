// The token data set: documents of token numbers with a mask that says which tokens are learned, in
// HDF5.
//   /tokens [n], /offsets [documents + 1], /loss_mask [n]: any integer type; attributes
//   format_version = 1, vocab_size, and where it is known tokenizer_sha256.
// Document d is tokens[offsets[d], offsets[d + 1]). Token i >= 1 of a document is a target where
// its mask is 1: it is predicted from the tokens before it. The mask of a first token is ignored.
// Everything is read into memory once, so nothing in a step touches HDF5.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace utrain {

struct TokenDataSet {
  std::string path;
  std::vector<int32_t> tokens;     // [n] each in [0, vocab_size)
  std::vector<int64_t> offsets;    // [documents + 1] from 0 to n, never decreasing
  std::vector<uint8_t> loss_mask;  // [n] 0 or 1
  int64_t vocab_size = 0;          // the attribute: at most the model's
  uint64_t hash = 0;             // XXH3 of the contents: equal for equal data however it is stored
  std::string tokenizer_sha256;  // of the tokenizer.json it was made with; empty where not told

  int64_t n_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t n_documents() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t length(int64_t document) const { return offsets[document + 1] - offsets[document]; }
  // Targets among the first `length` tokens of a document.
  int64_t n_targets(int64_t document, int64_t length) const;
};

// Throws usage (2) where the path does not exist, bad_file (3) where the file is not such a data
// set or its tokens do not fit a model of model_vocab_size rows in its embedding.
TokenDataSet read_token_data_set(const std::string& path, int64_t model_vocab_size);

// The two halves of its checks, for numbers from anywhere: what a file says before its arrays are
// read, and the arrays. bad_file, with data.path.
struct TokenFileFacts {
  int64_t format_version = 0, vocab_size = 0;
  int64_t n_tokens = 0, n_offsets = 0, n_mask = 0;
};
void check_facts(const std::string& path, const TokenFileFacts& facts, int64_t model_vocab_size);
void check_arrays(const TokenDataSet& data);

}  // namespace utrain
