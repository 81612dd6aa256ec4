// A whole file as the input: header, and every element of every tensor that can be read.
#include "io/safetensors.h"

#include "fuzz.h"

using namespace utrain;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryDir dir;
  dir.write("x.safetensors", fuzz::text_of(data, size));
  fuzz::accepts({ExitCode::bad_file}, [&] {
    const SafetensorsFile file(dir / "x.safetensors");
    int64_t total = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      fuzz::expect(file.find(name) == &tensor && tensor.name == name, "found by its name");
      fuzz::expect(tensor.n_elem() * bits_of(tensor.dtype) == 8 * tensor.bytes, "shape fits bytes");
      total += tensor.bytes;
      if (!is_readable(tensor.dtype)) continue;
      std::vector<float> values(static_cast<size_t>(tensor.n_elem()));
      read_elements(tensor, 0, tensor.n_elem(), values.data());
      read_elements(tensor, 0, tensor.n_elem(), DType::bf16, values.data());
      prefetch_elements(tensor, 0, tensor.n_elem());
    }
    fuzz::expect(total + 8 <= static_cast<int64_t>(size), "tensors lie inside the file");
  });
  return 0;
}
