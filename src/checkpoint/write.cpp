#include "checkpoint/write.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>

#include "checkpoint/files.h"
#include "checkpoint/index.h"
#include "checkpoint/manifest.h"
#include "checkpoint/read.h"
#include "checkpoint/shard.h"
#include "io/file.h"

namespace utrain {

namespace fs = std::filesystem;

namespace {

constexpr double kRoom = 1.1;  // of the bytes that are said to come

std::string unique_suffix() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

bool is_left_over(const std::string& name) {
  const bool ours = name.starts_with("step-") || name.starts_with("LATEST");
  return name.starts_with(".trash-") || (ours && name.find(".tmp-") != std::string::npos);
}

void make_folder(const std::string& folder) {
  std::error_code error;
  if (fs::create_directories(folder, error)) {
    const fs::path above = fs::absolute(folder).lexically_normal().parent_path();
    sync_directory(above.string());
  }
  if (error) fail_io(folder, "cannot make the directory", error.value());
}

void check_room(const std::string& folder, int64_t bytes) {
  struct statvfs info;
  if (::statvfs(folder.c_str(), &info) != 0) fail_io(folder, "free space is not known", errno);
  if (info.f_blocks == 0) return;  // a file system that does not tell
  const double free = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
  const double needed = kRoom * static_cast<double>(bytes);
  if (free < needed)
    fail(ExitCode::io, folder,
         fmt::format("{:.0f} bytes are free, a checkpoint needs {:.0f}", free, needed),
         "make room, or name a run.dir on a larger file system");
}

// What cannot be removed now is in nobody's way, and is tried again at the next save.
void remove_left_overs(const std::string& folder, const FileSign& sign) {
  std::error_code error;
  std::vector<fs::path> found;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (is_left_over(it->path().filename().string())) found.push_back(it->path());
  for (const fs::path& path : found) remove_tree(path.string(), sign);
}

void sync_file(const std::string& path, const FileSign& sign) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) fail_io(path, "cannot be opened to be synced", errno);
  struct stat info;
  const int64_t bytes = ::fstat(fd, &info) == 0 ? info.st_size : 0;
  const int error = sync_file_data(fd, bytes, sign, path);
  ::close(fd);
  if (error != 0) fail_io(path, "syncing failed", error);
}

// All parameters of the buffer, from the shards.
std::vector<float> read_back(const std::string& temp, const CheckpointContents& contents,
                             const FileSign& sign) {
  constexpr int64_t kPiece = int64_t{4} << 20;
  const Slice all{0, contents.layout->n_elem()};
  std::vector<float> parameters(static_cast<size_t>(all.n_elem));
  const int ranks = static_cast<int>(contents.slices.size());
  for (int rank = 0; rank < ranks; ++rank) {
    const ShardReader shard(temp, rank, ranks, contents.slices[static_cast<size_t>(rank)],
                            ExitCode::io);
    for (const Slice& slice : contents.slices[static_cast<size_t>(rank)]) {
      const int64_t end = slice.begin + slice.n_elem;
      for (int64_t begin = slice.begin; begin < end; begin += kPiece) {
        show(sign, temp + "/" + shard_name(rank, ranks));
        shard.read("parameters", {begin, std::min(kPiece, end - begin)},
                   &parameters[static_cast<size_t>(begin)]);
      }
    }
  }
  return parameters;
}

// What write_output left in temp, synced; known: names that are listed already.
std::vector<FileFacts> other_files(const std::string& temp, const std::vector<FileFacts>& known,
                                   const FileSign& sign) {
  std::vector<FileFacts> found;
  std::error_code error;
  fs::recursive_directory_iterator it(temp, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    const std::string name = fs::path(it->path()).lexically_relative(temp).string();
    show(sign, it->path().string());
    if (fs::is_directory(it->symlink_status(error))) {
      sync_directory(it->path().string());
      continue;
    }
    if (std::any_of(known.begin(), known.end(), [&](const FileFacts& f) { return f.name == name; }))
      continue;
    if (!is_checkpoint_file_name(name))
      fail(ExitCode::internal, it->path().string(), "is no name for a file of a checkpoint",
           "this is a fault of utrain: please report it");
    sync_file(it->path().string(), sign);
    found.push_back(read_facts(temp, name, ExitCode::io, sign));
  }
  if (error) fail_io(temp, "cannot be listed", error.value());
  std::sort(found.begin(), found.end(),
            [](const FileFacts& a, const FileFacts& b) { return a.name < b.name; });
  return found;
}

void check_shards(const std::string& temp, const CheckpointContents& contents,
                  const FileSign& sign) {
  const int64_t ranks = static_cast<int64_t>(contents.slices.size());
  ASSERT(contents.layout != nullptr && contents.state.is_object());
  ASSERT(fault_of_slices(contents.slices, contents.layout->n_elem()).empty());
  ASSERT(static_cast<int64_t>(contents.shards.size()) == ranks);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const FileFacts& shard = contents.shards[static_cast<size_t>(rank)];
    ASSERT(shard.name == shard_name(rank, ranks));
    const std::string path = temp + "/" + shard.name;
    show(sign, path);
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0)
      fail_io(path, fmt::format("the shard of {} bytes is not there", shard.bytes), errno);
    if (info.st_size != shard.bytes)
      fail(ExitCode::io, path,
           fmt::format("{} bytes found, {} were written", info.st_size, shard.bytes),
           "all ranks must see one file system; check it");
  }
}

// temp takes the name; what had it goes to the trash, in one step where the file system can.
void put_in_place(const std::string& temp, const std::string& path, const std::string& trash) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) {
    if (::rename(temp.c_str(), path.c_str()) != 0)
      fail_io(path, "renaming into place failed", errno);
    return;
  }
  if (::renameat2(AT_FDCWD, temp.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
    if (::rename(temp.c_str(), trash.c_str()) != 0) fail_io(temp, "renaming failed", errno);
    return;
  }
  if (::rename(path.c_str(), trash.c_str()) != 0)
    fail_io(path, "renaming the old checkpoint away failed", errno);
  if (::rename(temp.c_str(), path.c_str()) != 0) fail_io(path, "renaming into place failed", errno);
}

std::string trash_name(const fs::path& folder, const std::string& name) {
  return (folder / fmt::format(".trash-{}-{}", name, unique_suffix())).string();
}

}  // namespace

std::string begin_checkpoint(const std::string& folder, int64_t step, int64_t bytes,
                             const FileSign& sign) {
  ASSERT(step >= 0 && bytes >= 0);
  make_folder(folder);
  remove_left_overs(folder, sign);
  check_room(folder, bytes);
  const std::string temp =
      fmt::format("{}/{}.tmp-{}", folder, checkpoint_name(step), unique_suffix());
  if (::mkdir(temp.c_str(), 0777) != 0) fail_io(temp, "cannot make the directory", errno);
  return temp;
}

void abandon_checkpoint(const std::string& temp, const FileSign& sign) {
  if (!temp.empty()) remove_tree(temp, sign);
}

std::string commit_checkpoint(const std::string& temp, const CheckpointContents& contents,
                              const FileSign& sign) {
  check_shards(temp, contents, sign);
  write_index(temp + "/index.h5", contents.step, *contents.layout, contents.slices, sign);
  write_text_file(temp + "/state.json", to_pretty_text(contents.state) + "\n", sign);
  if (contents.write_output) contents.write_output(temp, read_back(temp, contents, sign), sign);

  Manifest manifest{contents.step, contents.layout->n_elem(), contents.slices, contents.shards};
  for (const char* name : {"index.h5", "state.json"})
    manifest.files.push_back(read_facts(temp, name, ExitCode::io, sign));
  const std::vector<FileFacts> others = other_files(temp, manifest.files, sign);
  manifest.files.insert(manifest.files.end(), others.begin(), others.end());
  const std::string text = to_text(manifest);
  write_text_file(temp + "/manifest.json", text, sign);
  write_text_file(temp + "/COMMITTED", xxh3_of(text) + "\n", sign);  // syncs temp, too

  const fs::path folder = fs::path(temp).parent_path();
  const std::string name = checkpoint_name(contents.step), path = (folder / name).string();
  const std::string trash = trash_name(folder, name);
  show(sign, path);
  put_in_place(temp, path, trash);
  show(sign, path);
  sync_directory(folder.string());
  write_text_file((folder / "LATEST").string(), name + "\n", sign);
  remove_tree(trash, sign);
  return path;
}

void retain_checkpoints(const std::string& folder, int64_t keep, const FileSign& sign) {
  ASSERT(keep >= 1);
  std::vector<CheckpointPlace> behind;  // older than `keep` sound ones
  int64_t n_sound = 0;
  std::string best;
  double lowest = 0.0;
  for (const CheckpointPlace& place : list_checkpoints(folder)) {
    show(sign, place.path);
    const bool enough = n_sound >= keep;
    try {
      const Checkpoint checkpoint(place.path);
      const Json* loss = checkpoint.state().find("eval_loss");
      if (loss != nullptr && loss->is_number() && (best.empty() || loss->as_double() < lowest)) {
        best = place.path;
        lowest = loss->as_double();
      }
      ++n_sound;
    } catch (const Error& error) {  // a damaged one counts for nothing, and is in nobody's way
      if (error.code() != ExitCode::no_checkpoint) throw;
    }
    if (enough) behind.push_back(place);
  }
  for (const CheckpointPlace& place : behind) {
    if (place.path == best) continue;
    const std::string trash = trash_name(folder, checkpoint_name(place.step));
    if (::rename(place.path.c_str(), trash.c_str()) != 0)
      fail_io(place.path, "renaming to be removed failed", errno);
    remove_tree(trash, sign);
  }
}

}  // namespace utrain
