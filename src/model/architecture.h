// The shape of a model, from the config.json of a Hugging Face directory: llama, mistral, qwen2,
// qwen3, in the spelling of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters). Keys
// left out have the default of their model_type. What would compute something else than our forward
// pass is refused by name, never guessed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace utrain {

struct Rope {
  enum class Type { plain, llama3 };
  double theta = 10000.0;
  Type type = Type::plain;
  // llama3 only: lambda = 2 pi / f; f / factor where lambda > original / low, f where lambda <
  // original / high, between them interpolated.
  double factor = 1.0, low_freq_factor = 1.0, high_freq_factor = 1.0;
  int64_t original_max_position_embeddings = 0;
};

struct Architecture {
  std::string model_type;
  int64_t hidden_size = 0;        // C
  int64_t n_layers = 0;           // L
  int64_t n_heads = 0;            // Hq
  int64_t n_kv_heads = 0;         // Hkv, divides Hq
  int64_t head_dim = 0;           // D, even, <= 256; Hq * D need not be C
  int64_t intermediate_size = 0;  // F
  int64_t vocab_size = 0;         // V
  int64_t max_position_embeddings = 0;
  double norm_eps = 0.0;
  bool tied_embeddings = false;  // the head is the embedding table
  bool attention_bias = false;   // of q, k, v
  bool o_bias = false;
  bool mlp_bias = false;  // of gate, up, down
  bool qk_norm = false;   // RMSNorm over D of each query and key head, before RoPE
  double initializer_range = 0.02;
  std::vector<int64_t> window;  // [L] query i sees keys j with i - j < window; 0 = all
  Rope rope;

  int64_t n_parameters() const;  // elements of expected_tensors()
};

// No such directory: usage. No config.json, malformed, out of bounds or not supported: bad_file.
Architecture read_architecture(const std::string& model_dir);

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};

// Names in the file and shapes, embedding first, layers in order, then the final norm and the head
// (untied only). A tied model whose file holds lm_head.weight all the same: it is not read.
std::vector<TensorSpec> expected_tensors(const Architecture& architecture);

}  // namespace utrain
