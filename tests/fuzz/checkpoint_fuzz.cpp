// manifest.json, state.json and COMMITTED of a checkpoint, apart by NUL bytes; what is left out of
// COMMITTED is made right, as are "@hash" and "@size" of state.json in the manifest: the input gets
// past the hashes, which a fuzzer cannot guess.
#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/read.h"
#include "fuzz.h"

using namespace utrain;

namespace {

struct Folder {
  Folder() {
    std::filesystem::create_directory(dir / "step-00000003");
    for (const char* name : {"shard-00000-of-00001.h5", "shard-00000-of-00002.h5",
                             "shard-00001-of-00002.h5", "index.h5"})
      dir.write(std::string("step-00000003/") + name, std::string(4096, 'x'));
  }
  fuzz::MemoryDir dir;
};

void replace(std::string& text, std::string_view from, const std::string& to) {
  const size_t at = text.find(from);
  if (at != text.npos) text.replace(at, from.size(), to);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  const std::string_view all = fuzz::text_of(data, size);
  const size_t first = std::min(all.find('\0'), all.size());
  const size_t second = std::min(all.find('\0', first + 1), all.size());
  std::string manifest(all.substr(0, first));
  const std::string_view state = all.substr(std::min(first + 1, second), second - first - 1);
  replace(manifest, "@hash", xxh3_of(state));
  replace(manifest, "@size", std::to_string(state.size()));
  std::string committed(all.substr(std::min(second + 1, all.size())));
  if (committed.empty()) committed = xxh3_of(manifest) + "\n";

  fuzz::accepts({ExitCode::no_checkpoint}, [&] {
    const Manifest m = parse_manifest(manifest, "manifest.json");
    fuzz::expect(fault_of_slices(m.slices, m.n_elem).empty(), "the slices cover the buffer once");
    fuzz::expect(to_text(parse_manifest(to_text(m), "again")) == to_text(m), "reads back the same");
  });
  folder.dir.write("step-00000003/manifest.json", manifest);
  folder.dir.write("step-00000003/state.json", state);
  folder.dir.write("step-00000003/COMMITTED", committed);
  fuzz::accepts({ExitCode::no_checkpoint}, [&] {
    const Checkpoint checkpoint(folder.dir / "step-00000003");
    fuzz::expect(checkpoint.step() == 3, "the step of the name");
    fuzz::expect(checkpoint.ranks() >= 1 && checkpoint.n_elem() >= 0, "ranks and elements");
    fuzz::expect(checkpoint.state().is_object(), "state.json is an object");
    for (const FileFacts& file : checkpoint.files())
      fuzz::expect(is_checkpoint_file_name(file.name), "plain names");
    checkpoint.verify();
  });
  return 0;
}
