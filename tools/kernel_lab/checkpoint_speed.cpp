// How fast a checkpoint is written and read, and what it takes of memory beside the state itself.
//   cmake --build build/cpu --target checkpoint_speed && build/cpu/checkpoint_speed DIR [MB]
#include <fmt/core.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <random>

#include "checkpoint/read.h"
#include "checkpoint/write.h"
#include "core/process.h"

namespace {

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  using namespace utrain;
  if (argc < 2) {
    fmt::print(stderr, "usage: checkpoint_speed DIR [MB of state]\n");
    return 2;
  }
  const std::string folder = std::string(argv[1]) + "/checkpoint_speed";
  const int64_t cols = 4096, n_tensors = 64;
  const int64_t rows = (argc > 2 ? std::atoll(argv[2]) : 500) * 1'000'000 / 12 / cols / n_tensors;
  TrainableLayout layout;
  for (int64_t i = 0; i < n_tensors; ++i) {
    Trainable tensor;
    tensor.name = fmt::format("layers.{}.weight", i);
    tensor.rows = rows;
    tensor.cols = cols;
    layout.add(tensor, true);
    layout.end_unit();
  }
  std::vector<float> state(static_cast<size_t>(3 * layout.n_elem()));
  std::mt19937 random(1);
  for (float& x : state) x = static_cast<float>(random());
  const float* first = state.data();
  const ShardState shard{
      {{0, layout.n_elem()}}, first, first + layout.n_elem(), first + 2 * layout.n_elem()};
  const double mb = static_cast<double>(state.size()) * sizeof(float) / 1e6;
  const int64_t before = peak_memory();

  CheckpointContents contents;
  contents.layout = &layout;
  contents.slices = {shard.slices};
  contents.state = Json::object();
  std::string temp, path;
  const double write = seconds([&] {
    temp = begin_checkpoint(folder, 0, 0);
    contents.shards = {write_shard(temp, 0, 1, shard)};
  });
  const double commit = seconds([&] { path = commit_checkpoint(temp, contents); });
  const double verify = seconds([&] { Checkpoint(path).verify(); });
  const int64_t after = peak_memory();
  std::vector<float> back(static_cast<size_t>(layout.n_elem()));
  const double read = seconds([&] {
    const Checkpoint checkpoint(path);
    for (const auto array :
         {Checkpoint::Array::parameters, Checkpoint::Array::m, Checkpoint::Array::v})
      checkpoint.read(array, {0, layout.n_elem()}, back.data());
  });
  fmt::print(
      "{:.0f} MB: written, synced and hashed in {:.2f} s ({:.0f} MB/s), committed in {:.2f} s\n",
      mb, write, mb / write, commit);
  fmt::print("  verified {:.0f} MB/s, read {:.0f} MB/s, {:.1f} MB more memory while writing\n",
             mb / verify, mb / read, static_cast<double>(after - before) / 1e6);
  std::filesystem::remove_all(folder);
  return 0;
}
