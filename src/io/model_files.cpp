#include "io/model_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include "io/json.h"

namespace utrain {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMaxIndexBytes = int64_t{64} << 20;
constexpr size_t kMaxShards = 4096;

bool exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// [A-Za-z0-9._-]+\.safetensors: no separator, no parent, nothing a shell or a terminal would read.
bool is_shard_name(std::string_view name) {
  constexpr std::string_view kSuffix = ".safetensors";
  if (!name.ends_with(kSuffix) || name.size() <= kSuffix.size() || name.size() > 255) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

bool lies_under(const fs::path& path, const fs::path& dir) {
  return std::mismatch(dir.begin(), dir.end(), path.begin(), path.end()).first == dir.end();
}

// Where the shard really is: inside the model directory, or, for a snapshot of the hub cache
// (.../snapshots/REVISION), inside .../blobs.
void check_shard_place(const fs::path& dir, const fs::path& shard) {
  std::error_code error;
  const fs::path real = fs::canonical(shard, error);
  if (error) {
    fail(ExitCode::bad_file, shard.string(), "the index names this file, but it is not there",
         "fetch the missing file of the model");
  }
  const fs::path real_dir = fs::canonical(dir, error);
  if (!error && lies_under(real, real_dir)) return;
  const fs::path snapshots = real_dir.parent_path();
  if (!error && snapshots.filename() == "snapshots" &&
      lies_under(real, snapshots.parent_path() / "blobs")) {
    return;
  }
  fail(ExitCode::bad_file, shard.string(),
       fmt::format("resolves to {}, a file inside the model directory wanted", real.string()),
       "put the file itself into the directory");
}

bool holds_pickled_weights(const fs::path& dir) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("pytorch_model") && name.find(".bin") != std::string::npos) return true;
  }
  return false;
}

[[noreturn]] void fail_without_weights(const std::string& dir) {
  if (holds_pickled_weights(dir)) {
    fail(ExitCode::bad_file, dir,
         "pytorch_model*.bin found, model.safetensors wanted: pickled weights can run code and "
         "are not read",
         "convert once in Python: AutoModelForCausalLM.from_pretrained(dir, torch_dtype=\"auto\")"
         ".save_pretrained(new_dir, safe_serialization=True)");
  }
  fail(ExitCode::bad_file, dir,
       "no weights found, model.safetensors or model.safetensors.index.json wanted",
       "fetch the weights, or start from random ones with model.init = \"random\"");
}

}  // namespace

ModelFiles::ModelFiles(const std::string& dir) : dir_(dir) {
  std::error_code error;
  if (!fs::is_directory(dir, error)) {
    fail(ExitCode::usage, dir, "no such directory, a model directory wanted", "check model.path");
  }
  const std::string index_path = (fs::path(dir) / "model.safetensors.index.json").string();
  const std::string single_path = (fs::path(dir) / "model.safetensors").string();
  if (exists(single_path)) {
    files_.emplace_back(single_path, ExitCode::bad_file);
    for (const auto& [name, tensor] : files_[0].tensors()) {
      tensors_.emplace(name, &tensor);
      file_of_.emplace(name, single_path);
    }
  } else if (exists(index_path)) {
    open_sharded(index_path);
  } else {
    fail_without_weights(dir);
  }
  for (const auto& entry : tensors_) total_bytes_ += entry.second->bytes;
}

void ModelFiles::open_sharded(const std::string& index_path) {
  const Json json =
      parse_json(read_text_file(index_path, kMaxIndexBytes, ExitCode::bad_file), index_path);
  const JsonObjectReader weight_map = JsonObjectReader(json, index_path).object("weight_map");

  std::set<std::string> shards;
  for (const auto& [name, value] : weight_map.json().as_object()) {
    if (!value.is_string() || !is_shard_name(value.as_string())) {
      fail(ExitCode::bad_file, weight_map.where(),
           fmt::format("{} found for tensor {}, a plain file name NAME.safetensors wanted",
                       describe(value), in_quotes(name)),
           "repair the index or fetch it again");
    }
    shards.insert(value.as_string());
  }
  if (shards.empty() || shards.size() > kMaxShards) {
    fail(ExitCode::bad_file, weight_map.where(),
         fmt::format("{} files named, 1 to {} wanted", shards.size(), kMaxShards),
         "repair the index or fetch it again");
  }

  std::map<std::string, size_t> file_index;
  for (const std::string& shard : shards) {
    const fs::path path = fs::path(dir_) / shard;
    check_shard_place(dir_, path);
    file_index.emplace(shard, files_.size());
    files_.emplace_back(path.string(), ExitCode::bad_file);
  }
  for (const auto& [name, value] : weight_map.json().as_object()) {
    const SafetensorsFile& file = files_[file_index.at(value.as_string())];
    const StoredTensor* tensor = file.find(name);
    if (tensor == nullptr) {
      fail(ExitCode::bad_file, file.path(),
           fmt::format("tensor {} is not in it, though {} says so", in_quotes(name), index_path),
           "fetch the index and its files again, from one revision");
    }
    tensors_.emplace(name, tensor);
    file_of_.emplace(name, file.path());
  }
  for (const SafetensorsFile& file : files_) {
    for (const auto& entry : file.tensors()) {
      const auto named = file_of_.find(entry.first);
      if (named == file_of_.end() || named->second == file.path()) continue;
      fail(ExitCode::bad_file, file.path(),
           fmt::format("tensor {} found, the index places it in {}", entry.first, named->second),
           "fetch the index and its files again, from one revision");
    }
  }
}

const StoredTensor* ModelFiles::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second;
}

const StoredTensor& ModelFiles::at(const std::string& name,
                                   const std::vector<int64_t>& shape) const {
  const StoredTensor* tensor = find(name);
  if (tensor == nullptr) {
    fail(
        ExitCode::bad_file, dir_,
        fmt::format("tensor {} {} is missing, config.json asks for it", name, text_of_shape(shape)),
        "check that the weights and config.json belong together");
  }
  const std::string where = fmt::format("{}: tensor {}", file_of_.at(name), name);
  if (tensor->shape != shape) {
    fail(ExitCode::bad_file, where,
         fmt::format("shape {} found, {} wanted by config.json", text_of_shape(tensor->shape),
                     text_of_shape(shape)),
         "check that the weights and config.json belong together");
  }
  if (!is_readable(tensor->dtype)) {
    fail(ExitCode::bad_file, where,
         fmt::format("dtype {} found, BF16, F16, F32 or F64 wanted", name_of(tensor->dtype)),
         "quantised weights are not supported: take the model in bfloat16");
  }
  return *tensor;
}

std::vector<std::string> ModelFiles::names() const {
  std::vector<std::string> out;
  out.reserve(tensors_.size());
  for (const auto& entry : tensors_) out.push_back(entry.first);
  return out;
}

}  // namespace utrain
