// model.safetensors.index.json beside two shards; a third lies outside of the directory.
#include "fuzz.h"
#include "io/model_files.h"

using namespace utrain;

namespace {

std::string shard(const std::string& tensor) {
  const std::string header =
      fmt::format(R"({{"{}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}})", tensor);
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  return bytes + header + "12345678";
}

struct Model {
  Model() {
    std::filesystem::create_directory(dir / "model");
    dir.write("outside.safetensors", shard("c"));
    dir.write("model/a.safetensors", shard("a"));
    dir.write("model/b.safetensors", shard("b"));
    std::filesystem::create_symlink("../outside.safetensors", dir / "model/c.safetensors");
  }
  fuzz::MemoryDir dir;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Model model;
  model.dir.write("model/model.safetensors.index.json", fuzz::text_of(data, size));
  fuzz::accepts({ExitCode::bad_file}, [&] {
    const ModelFiles files(model.dir / "model");
    for (const std::string& name : files.names()) {
      fuzz::expect(name == "a" || name == "b", "only tensors of the two shards");
      float values[2];
      read_elements(files.at(name, {2}), 0, 2, values);
    }
  });
  return 0;
}
