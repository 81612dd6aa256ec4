// input.toml and, each behind a NUL byte, overrides KEY=VALUE as the command line gives them. What
// is accepted reads back the same from --print-config.
#include "config/input_file.h"

#include "config/print.h"
#include "fuzz.h"

using namespace utrain;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryDir dir;
  std::string_view rest = fuzz::text_of(data, size);
  const auto next = [&] {
    const size_t end = std::min(rest.find('\0'), rest.size());
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    return part;
  };
  dir.write("input.toml", next());
  std::vector<Override> overrides;
  while (!rest.empty() && overrides.size() < 4) {
    const std::string word(next());
    const size_t equal = std::min(word.find('='), word.size());
    overrides.push_back({word.substr(0, equal), word.substr(std::min(equal + 1, word.size()))});
  }
  fuzz::accepts({ExitCode::usage}, [&] {
    const std::string printed = print_config(read_config(dir / "input.toml", overrides));
    std::string again;
    const bool reads =
        fuzz::accepts({}, [&] { again = print_config(parse_config(printed, "printed", {})); });
    fuzz::expect(reads && again == printed, "--print-config reads back the same");
  });
  return 0;
}
