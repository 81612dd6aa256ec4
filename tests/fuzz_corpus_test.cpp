// Every fuzz target on its corpus and on 20,000 mutations of it, without a fuzzer: in `make test`
// this runs under AddressSanitizer with the compiler of all other tests. `make fuzz` goes further.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "io_files.h"
#include "places.h"

// LLVMFuzzerTestOneInput of tests/fuzz/<name>_fuzz.cpp, renamed by CMakeLists.txt.
extern "C" {
int adapter_config_fuzz(const uint8_t*, size_t);
int checkpoint_fuzz(const uint8_t*, size_t);
int checkpoint_slices_fuzz(const uint8_t*, size_t);
int input_fuzz(const uint8_t*, size_t);
int model_config_fuzz(const uint8_t*, size_t);
int model_index_fuzz(const uint8_t*, size_t);
int safetensors_fuzz(const uint8_t*, size_t);
int token_data_fuzz(const uint8_t*, size_t);
}

namespace utrain {
namespace {

namespace fs = std::filesystem;

constexpr int kMutations = 20000;

struct Target {
  const char* name;
  int (*run)(const uint8_t*, size_t);
};
const std::vector<Target> kTargets = {{"adapter_config", adapter_config_fuzz},
                                      {"checkpoint", checkpoint_fuzz},
                                      {"checkpoint_slices", checkpoint_slices_fuzz},
                                      {"input", input_fuzz},
                                      {"model_config", model_config_fuzz},
                                      {"model_index", model_index_fuzz},
                                      {"safetensors", safetensors_fuzz},
                                      {"token_data", token_data_fuzz}};

void PrintTo(const Target& target, std::ostream* out) {
  *out << target.name;
}

// By name, so that every machine sees the same mutations.
std::map<std::string, std::string> corpus_of(const std::string& name) {
  std::map<std::string, std::string> inputs;
  for (const auto& entry : fs::directory_iterator(source_dir() + "/tests/fuzz/corpus/" + name))
    inputs[entry.path().filename().string()] = read_bytes(entry.path().string());
  return inputs;
}

class Mutator {
 public:
  explicit Mutator(std::vector<std::string> inputs) : inputs_(std::move(inputs)) {}

  std::string next() {
    std::string bytes = inputs_[below(inputs_.size())];
    for (size_t n = 1 + below(4); n > 0; --n) change(bytes);
    return bytes;
  }

 private:
  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }
  char byte() {
    constexpr char kBytes[] = "\0\xff\x7f\x80\"\\{}[],:.09-\n=x";
    return below(2) == 0 ? static_cast<char>(random_()) : kBytes[below(sizeof kBytes - 1)];
  }

  void change(std::string& bytes) {
    if (bytes.empty()) bytes = std::string(1, byte());
    const size_t at = below(bytes.size()), length = 1 + below(std::min<size_t>(bytes.size(), 24));
    switch (below(6)) {
      case 0: bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8))); return;
      case 1: bytes[at] = byte(); return;
      case 2: bytes.erase(at, length); return;
      case 3: bytes.insert(at, bytes.substr(below(bytes.size()), length)); return;
      case 4: bytes.resize(at); return;
      default:  // the end of another input
        const std::string& other = inputs_[below(inputs_.size())];
        bytes = bytes.substr(0, at) + other.substr(below(other.size() + 1));
    }
  }

  std::vector<std::string> inputs_;
  std::mt19937_64 random_{7};
};

class Corpus : public testing::TestWithParam<Target> {};

TEST_P(Corpus, AndMutations) {
  const Target& target = GetParam();
  std::vector<std::string> inputs;
  for (const auto& [name, bytes] : corpus_of(target.name)) inputs.push_back(bytes);
  ASSERT_GE(inputs.size(), 10u);
  const auto run = [&](const std::string& bytes) {
    // A copy of its own length: a byte read behind it is seen.
    const std::vector<uint8_t> copy(bytes.begin(), bytes.end());
    target.run(copy.data(), copy.size());
  };
  for (const std::string& bytes : inputs) run(bytes);
  Mutator mutator(inputs);
  for (int i = 0; i < kMutations; ++i) run(mutator.next());
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Corpus, testing::ValuesIn(kTargets),
                         [](const auto& info) { return info.param.name; });

TEST(FuzzTargets, AllAreHere) {
  size_t n_files = 0;
  for (const auto& entry : fs::directory_iterator(source_dir() + "/tests/fuzz"))
    n_files += entry.path().string().ends_with("_fuzz.cpp");
  EXPECT_EQ(n_files, kTargets.size());
}

}  // namespace
}  // namespace utrain
