// config.json to Architecture: every size that memory is computed from stays in its bounds.
#include "fuzz.h"
#include "model/architecture.h"

using namespace utrain;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryDir dir;
  dir.write("config.json", fuzz::text_of(data, size));
  fuzz::accepts({ExitCode::bad_file}, [&] {
    const Architecture a = read_architecture(dir.path());
    fuzz::expect(a.hidden_size >= 1 && a.hidden_size <= 1 << 17, "hidden_size");
    fuzz::expect(a.n_layers >= 1 && a.n_layers <= 1024, "n_layers");
    fuzz::expect(a.n_kv_heads >= 1 && a.n_heads % a.n_kv_heads == 0, "n_kv_heads divides n_heads");
    fuzz::expect(a.head_dim >= 2 && a.head_dim <= 256 && a.head_dim % 2 == 0, "head_dim");
    fuzz::expect(a.vocab_size >= 1 && a.vocab_size <= 1 << 22, "vocab_size");
    fuzz::expect(a.norm_eps > 0.0 && a.rope.theta > 0.0, "norm_eps and theta");
    fuzz::expect(a.window.size() == static_cast<size_t>(a.n_layers), "a window for each layer");
    if (a.n_layers <= 4) fuzz::expect(a.n_parameters() > 0, "n_parameters does not overflow");
  });
  return 0;
}
