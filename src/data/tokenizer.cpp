#include "data/tokenizer.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/error.h"
#include "core/sha256.h"
#include "io/file.h"
#include "io/json.h"

namespace utrain {

namespace {
constexpr int64_t kMaxTokenizerBytes = int64_t{1} << 28;
}

void check_tokenizer(const TokenDataSet& data, const std::string& model_dir) {
  const std::string path = (std::filesystem::path(model_dir) / "tokenizer.json").string();
  std::error_code error;
  if (data.tokenizer_sha256.empty() || !std::filesystem::exists(path, error)) return;
  const std::string hash = sha256(read_text_file(path, kMaxTokenizerBytes, ExitCode::bad_file));
  if (hash == data.tokenizer_sha256) return;
  fail(
      ExitCode::bad_file, data.path,
      fmt::format("attribute tokenizer_sha256 is {}, {} has {}: it was made with another tokenizer",
                  describe(Json(data.tokenizer_sha256)), path, hash),
      fmt::format("prepare it with this model: tools/prepare {} INPUT.jsonl OUTPUT.h5", model_dir));
}

}  // namespace utrain
