// adapter_config.json: what is accepted is written and read back the same.
#include "fuzz.h"
#include "io/peft_adapter.h"

using namespace utrain;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryDir dir, copy;
  dir.write("adapter_config.json", fuzz::text_of(data, size));
  fuzz::accepts({ExitCode::bad_file}, [&] {
    const AdapterConfig a = read_adapter_config(dir.path());
    fuzz::expect(a.r >= 1 && a.r <= 1 << 15 && a.alpha > 0.0, "r and alpha");
    fuzz::expect(a.dropout >= 0.0 && a.dropout < 1.0, "dropout");
    fuzz::expect(!a.target_modules.empty() && a.target_modules.size() <= kProjectionNames.size(),
                 "target_modules");
    write_adapter_config(copy.path(), a);
    const AdapterConfig b = read_adapter_config(copy.path());
    fuzz::expect(a.r == b.r && a.alpha == b.alpha && a.dropout == b.dropout &&
                     a.use_rslora == b.use_rslora && a.target_modules == b.target_modules &&
                     a.base_model_name_or_path == b.base_model_name_or_path,
                 "reads back the same");
  });
  return 0;
}
