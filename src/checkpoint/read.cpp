#include "checkpoint/read.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/shard.h"
#include "io/file.h"

namespace utrain {

namespace fs = std::filesystem;

namespace {

// Sizes of all files, before any is opened.
void check_sizes(const std::string& path, const std::vector<FileFacts>& files) {
  for (const FileFacts& file : files) {
    const std::string place = path + "/" + file.name;
    struct stat info;
    if (::lstat(place.c_str(), &info) != 0) fail_checkpoint(place, std::strerror(errno));
    if (!S_ISREG(info.st_mode)) fail_checkpoint(place, "is no regular file");
    if (info.st_size != file.bytes)
      fail_checkpoint(place, fmt::format("has {} bytes, {} wanted", info.st_size, file.bytes));
  }
}

}  // namespace

std::vector<CheckpointPlace> list_checkpoints(const std::string& folder) {
  std::vector<CheckpointPlace> places;
  std::error_code error, ignored;
  fs::directory_iterator it(folder, error);
  if (error == std::errc::no_such_file_or_directory) return places;
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const int64_t step = step_of_name(it->path().filename().string());
    if (step >= 0 && fs::is_directory(it->symlink_status(ignored)))
      places.push_back({it->path().string(), step});
  }
  if (error) fail_io(folder, "cannot be listed", error.value());
  std::sort(places.begin(), places.end(),
            [](const CheckpointPlace& a, const CheckpointPlace& b) { return a.step > b.step; });
  return places;
}

Checkpoint::Checkpoint(const std::string& path, ExitCode missing) : path_(path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    const int error = errno;
    const bool absent = error == ENOENT || error == ENOTDIR;
    fail(absent ? missing : ExitCode::no_checkpoint, path,
         absent ? "no such checkpoint" : std::strerror(error), "check the path");
  }
  if (!S_ISDIR(info.st_mode)) fail_checkpoint(path, "is no directory");
  const auto is_there = [&](const char* name) {
    return ::lstat((path + "/" + name).c_str(), &info) == 0;
  };
  if (!is_there("COMMITTED") && !is_there("manifest.json")) {
    fail(ExitCode::no_checkpoint, path, "holds no checkpoint",
         "name one, as run.dir/checkpoints/step-00000100");
  }
  const std::string committed = read_checkpoint_text(path, "COMMITTED", 4096);
  const std::string text = read_checkpoint_text(path, "manifest.json", kMaxCheckpointText);
  if (committed != xxh3_of(text) + "\n")
    fail_checkpoint(path + "/manifest.json", "is not what COMMITTED was written for");
  Manifest manifest = parse_manifest(text, path + "/manifest.json");
  check_sizes(path, manifest.files);

  const FileFacts& facts = manifest.state();
  const std::string state = read_checkpoint_text(path, facts.name, kMaxCheckpointText);
  const std::string where = path + "/" + facts.name;
  if (xxh3_of(state) != facts.xxh3) fail_checkpoint(where, "has another XXH3 than the manifest");
  state_ = parse_json(state, where, ExitCode::no_checkpoint);
  if (!state_.is_object()) fail_checkpoint(where, "is no object");
  step_ = manifest.step;
  n_elem_ = manifest.n_elem;
  ranks_ = manifest.ranks();
  slices_ = std::move(manifest.slices);
  files_ = std::move(manifest.files);

  // A directory that lies under another step's name would be taken for that step.
  const fs::path plain = fs::path(path).lexically_normal();
  const std::string name = (plain.has_filename() ? plain : plain.parent_path()).filename().string();
  if (const int64_t named = step_of_name(name); named >= 0 && named != step_)
    fail_checkpoint(path, fmt::format("holds step {}, another than its name says", step_));
  const Json* step = state_.find("step");
  if (step != nullptr &&
      (!step->is_integer() || step->is_large_integer() || step->as_int64() != step_))
    fail_checkpoint(where, fmt::format("step is {}, {} wanted", describe(*step), step_));
}

void Checkpoint::verify(int part, int parts) const {
  ASSERT(part >= 0 && part < parts);
  for (size_t i = static_cast<size_t>(part); i < files_.size(); i += static_cast<size_t>(parts)) {
    const FileFacts found = read_facts(path_, files_[i].name, ExitCode::no_checkpoint);
    if (found.bytes != files_[i].bytes || found.xxh3 != files_[i].xxh3)
      fail_checkpoint(path_ + "/" + found.name,
                      fmt::format("has {} bytes with XXH3 {}, the manifest {} with {}", found.bytes,
                                  found.xxh3, files_[i].bytes, files_[i].xxh3));
  }
}

void Checkpoint::open_shards(const Slice& slice, const Work& work) const {
  ASSERT(slice.begin >= 0 && slice.n_elem >= 0 && slice.begin <= n_elem_ - slice.n_elem);
  for (int rank = 0; rank < ranks_; ++rank) {
    const std::vector<Slice>& held = slices_[static_cast<size_t>(rank)];
    if (!ShardReader::overlap(held, slice)) continue;
    work(ShardReader(path_, rank, ranks_, held, ExitCode::no_checkpoint));
  }
}

void Checkpoint::read(Array array, const Slice& slice, float* out) const {
  open_shards(slice, [&](const ShardReader& shard) {
    shard.read(kArrayNames[static_cast<size_t>(array)], slice, out);
  });
}

void Checkpoint::read(const Slice& slice, float* parameters, float* m, float* v) const {
  const std::array<float*, kArrayNames.size()> out = {parameters, m, v};
  open_shards(slice, [&](const ShardReader& shard) {
    for (size_t i = 0; i < out.size(); ++i) shard.read(kArrayNames[i], slice, out[i]);
  });
}

}  // namespace utrain
