#include "data/token_data_set.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "core/error.h"
#include "io/hdf5.h"

namespace utrain {

namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr const char* kMakeAgain = "make the file again (tools/prepare)";

[[noreturn]] void refuse(const std::string& path, const std::string& object,
                         const std::string& what, const std::string& remedy) {
  fail(ExitCode::bad_file, path, fmt::format("{} {}", object, what), remedy);
}

void check_offsets(const TokenDataSet& data) {
  const std::vector<int64_t>& offsets = data.offsets;
  if (offsets.front() != 0)
    refuse(data.path, "/offsets", fmt::format("starts at {}, 0 wanted", offsets.front()),
           kMakeAgain);
  const auto end = std::is_sorted_until(offsets.begin(), offsets.end());
  if (end != offsets.end())
    refuse(data.path, "/offsets",
           fmt::format("falls from {} to {} at index {}", *(end - 1), *end, end - offsets.begin()),
           kMakeAgain);
  if (offsets.back() != data.n_tokens())
    refuse(data.path, "/offsets",
           fmt::format("ends at {}, /tokens has {} values", offsets.back(), data.n_tokens()),
           kMakeAgain);
}

// "document 3, position 17" of a token.
std::string place_of(const TokenDataSet& data, int64_t index) {
  const auto next = std::upper_bound(data.offsets.begin(), data.offsets.end(), index);
  return fmt::format("document {}, position {}", next - data.offsets.begin() - 1,
                     index - *(next - 1));
}

void check_tokens(const TokenDataSet& data) {
  const auto outside = [&](int32_t token) { return token < 0 || token >= data.vocab_size; };
  const auto token = std::find_if(data.tokens.begin(), data.tokens.end(), outside);
  if (token != data.tokens.end())
    refuse(data.path, "/tokens",
           fmt::format("holds {} in {}, 0 to {} wanted (attribute vocab_size = {})", *token,
                       place_of(data, token - data.tokens.begin()), data.vocab_size - 1,
                       data.vocab_size),
           "prepare the data with the tokenizer of this model");
  const auto not_a_bit = [](uint8_t bit) { return bit > 1; };
  const auto bit = std::find_if(data.loss_mask.begin(), data.loss_mask.end(), not_a_bit);
  if (bit != data.loss_mask.end())
    refuse(data.path, "/loss_mask",
           fmt::format("is neither 0 nor 1 in {}", place_of(data, bit - data.loss_mask.begin())),
           kMakeAgain);
}

uint64_t hash_of(const TokenDataSet& data) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       XXH3_freeState);
  ASSERT(state != nullptr);
  XXH3_64bits_reset(state.get());
  const int64_t sizes[3] = {data.vocab_size, data.n_documents(), data.n_tokens()};
  XXH3_64bits_update(state.get(), sizes, sizeof sizes);
  XXH3_64bits_update(state.get(), data.offsets.data(), data.offsets.size() * sizeof(int64_t));
  XXH3_64bits_update(state.get(), data.tokens.data(), data.tokens.size() * sizeof(int32_t));
  XXH3_64bits_update(state.get(), data.loss_mask.data(), data.loss_mask.size());
  return XXH3_64bits_digest(state.get());
}

}  // namespace

int64_t TokenDataSet::n_targets(int64_t document, int64_t length) const {
  const uint8_t* mask = loss_mask.data() + offsets[document];
  return length < 2 ? 0 : std::count(mask + 1, mask + length, uint8_t{1});
}

void check_facts(const std::string& path, const TokenFileFacts& facts, int64_t model_vocab_size) {
  if (facts.format_version != 1)
    refuse(path, "attribute format_version", fmt::format("is {}, 1 wanted", facts.format_version),
           kMakeAgain);
  if (facts.vocab_size < 1)
    refuse(path, "attribute vocab_size", fmt::format("is {}, at least 1 wanted", facts.vocab_size),
           kMakeAgain);
  if (facts.vocab_size > model_vocab_size)
    refuse(path, "attribute vocab_size",
           fmt::format("is {}, the model has {} tokens", facts.vocab_size, model_vocab_size),
           "prepare the data with the tokenizer of this model");
  if (facts.n_tokens > kMaxTokens)
    refuse(path, "/tokens",
           fmt::format("has {} values, at most {} wanted", facts.n_tokens, kMaxTokens),
           "split the data set");
  if (facts.n_mask != facts.n_tokens)
    refuse(path, "/loss_mask",
           fmt::format("has {} values, /tokens has {}", facts.n_mask, facts.n_tokens), kMakeAgain);
  if (facts.n_offsets < 2)
    refuse(path, "/offsets",
           fmt::format("has {} values: no document, at least one wanted", facts.n_offsets),
           kMakeAgain);
  // Kernels take a document's number as int32.
  if (facts.n_offsets > std::numeric_limits<int32_t>::max())
    refuse(path, "/offsets", fmt::format("has {} values, at most 2^31 - 1 wanted", facts.n_offsets),
           "split the data set");
}

void check_arrays(const TokenDataSet& data) {
  check_offsets(data);
  check_tokens(data);
}

TokenDataSet read_token_data_set(const std::string& path, int64_t model_vocab_size) {
  ASSERT(model_vocab_size <= std::numeric_limits<int32_t>::max());
  const Hdf5Reader file(path);
  TokenDataSet data;
  data.path = path;
  TokenFileFacts facts;
  facts.vocab_size = data.vocab_size = file.integer_attribute("vocab_size");
  facts.format_version = file.integer_attribute("format_version");
  facts.n_tokens = file.integer_count("tokens");
  facts.n_offsets = file.integer_count("offsets");
  facts.n_mask = file.integer_count("loss_mask");
  check_facts(path, facts, model_vocab_size);

  // Values too large for these signed types are clipped to their ends, and the ends are refused.
  data.offsets.resize(facts.n_offsets);
  file.read_integers("offsets", data.offsets.data());
  data.tokens.resize(facts.n_tokens);
  file.read_integers("tokens", data.tokens.data());
  data.loss_mask.resize(facts.n_tokens);
  file.read_integers("loss_mask", reinterpret_cast<int8_t*>(data.loss_mask.data()));
  check_arrays(data);
  data.tokenizer_sha256 = file.text_attribute_or_empty("tokenizer_sha256");
  data.hash = hash_of(data);
  return data;
}

}  // namespace utrain
