// Saving and loading: the same bits on any number of ranks, whole tensors in the index, leftovers,
// replacement, what is kept.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "checkpoint/index.h"
#include "checkpoint_cases.h"
#include "places.h"

namespace utrain {
namespace {

using Names = std::vector<std::string>;
using Array = Checkpoint::Array;

class Checkpoints : public ::testing::Test {
 protected:
  std::string place() const { return dir / "checkpoints"; }

  TempDir dir;
  TrainableLayout layout = small_layout();
  FlatState flat{layout, 1};
};

TEST_F(Checkpoints, RoundTripOnAnyRanks) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    const std::string path = save(place(), 100 + ranks, layout, flat, {ranks});
    EXPECT_EQ(path, place() + fmt::format("/step-{:08}", 100 + ranks));
    const Checkpoint checkpoint(path);
    EXPECT_EQ(checkpoint.step(), 100 + ranks);
    EXPECT_EQ(checkpoint.ranks(), ranks);
    EXPECT_EQ(checkpoint.n_elem(), layout.n_elem());
    EXPECT_EQ(checkpoint.files().size(), static_cast<size_t>(ranks) + 4);
    EXPECT_EQ(checkpoint.state().find("scaler")->as_double(), 65536.0);
    for (int parts = 1; parts <= 3; ++parts)
      for (int part = 0; part < parts; ++part) EXPECT_NO_THROW(checkpoint.verify(part, parts));
    for (int readers = 1; readers <= 5; ++readers) {
      EXPECT_EQ(read_all(checkpoint, Array::parameters, layout, readers), flat.parameters);
      EXPECT_EQ(read_all(checkpoint, Array::m, layout, readers), flat.m);
      EXPECT_EQ(read_all(checkpoint, Array::v, layout, readers), flat.v);
    }
    EXPECT_EQ(read_bytes(place() + "/LATEST"), fmt::format("step-{:08}\n", 100 + ranks));
  }
}

TEST_F(Checkpoints, ReadsAnySlice) {
  const Checkpoint checkpoint(save(place(), 1, layout, flat, {4}));
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) {
    const int64_t begin = static_cast<int64_t>(random() % static_cast<uint64_t>(layout.n_elem()));
    const int64_t n =
        static_cast<int64_t>(random() % static_cast<uint64_t>(layout.n_elem() - begin + 1));
    std::vector<float> out(static_cast<size_t>(n));
    checkpoint.read(Array::v, {begin, n}, out.data());
    EXPECT_TRUE(std::equal(out.begin(), out.end(), flat.v.begin() + begin)) << begin << " " << n;
  }
}

TEST_F(Checkpoints, TheSameStateIsTheSameBytes) {
  const std::string a = save(dir / "a", 5, layout, flat);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5 knows seconds
  const std::string b = save(dir / "b", 5, layout, flat);
  for (const std::string& name : names_in(a)) {
    if (name == "adapter") continue;
    EXPECT_TRUE(read_bytes(a + "/" + name) == read_bytes(b + "/" + name)) << name;
  }
}

TEST_F(Checkpoints, OutputGetsAllParameters) {
  const std::string temp = begin_checkpoint(place(), 3, 0);
  CheckpointContents contents;
  contents.step = 3;
  contents.layout = &layout;
  contents.slices = cut(layout, 2);
  contents.state = Json::object();
  std::vector<FileFacts> shards(2);
  std::vector<std::thread> writers;  // as background threads of two ranks
  for (int rank = 0; rank < 2; ++rank)
    writers.emplace_back([&, rank] {
      shards[static_cast<size_t>(rank)] = save_shard(temp, flat, rank, contents.slices);
    });
  for (std::thread& writer : writers) writer.join();
  contents.shards = shards;
  std::vector<float> seen;
  contents.write_output = [&](const std::string& to, const std::vector<float>& parameters,
                              const FileSign&) {
    EXPECT_EQ(to, temp);
    EXPECT_FALSE(std::filesystem::exists(place() + "/step-00000003"));
    seen = parameters;
  };
  commit_checkpoint(temp, contents);
  EXPECT_EQ(seen, flat.parameters);
}

// Whoever watches hears of every MB that is written, synced or read back, and of every file.
TEST_F(Checkpoints, ShowWhereTheyAre) {
  const std::string temp = begin_checkpoint(place(), 3, 0);
  std::map<std::string, int64_t> signs;
  const FileSign sign = [&](const std::string& path) { ++signs[path]; };
  constexpr int64_t kMegabytes = 24;
  const std::vector<float> values(static_cast<size_t>(kMegabytes << 18), 1.0f);
  write_shard(temp, 1, 2, {{{0, std::ssize(values)}}, values.data(), values.data(), values.data()},
              sign);
  const std::string shard = temp + "/shard-00001-of-00002.h5";
  // Three arrays: written and read back a MB at a time, synced twice over, 4 MB at a time.
  EXPECT_GE(signs[shard], 3 * kMegabytes * 2 + 3 * kMegabytes / 4 * 2);
  EXPECT_EQ(signs.size(), 1u);

  std::filesystem::remove(shard);
  CheckpointContents contents;
  contents.step = 3;
  contents.layout = &layout;
  contents.slices = cut(layout, 2);
  contents.state = Json::object();
  for (int rank = 0; rank < 2; ++rank)
    contents.shards.push_back(save_shard(temp, flat, rank, contents.slices));
  const std::string path = commit_checkpoint(temp, contents, sign);
  for (const char* name :
       {"shard-00000-of-00002.h5", "index.h5", "state.json", "manifest.json", "COMMITTED"})
    EXPECT_GE(signs[temp + "/" + name], 1) << name;
  EXPECT_GE(signs[path], 2);
  EXPECT_GE(signs[place() + "/LATEST"], 4);
}

// Each piece of a tensor names elements of the flat buffer, every one once and in its place.
TEST_F(Checkpoints, PiecesCoverEveryTensor) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    std::vector<std::vector<Slice>> slices = cut(layout, ranks);
    if (ranks == 5)
      slices = {{{0, 3}, {10, 334}},
                {{3, 7}, {344, 5}},
                {{349, 995}, {2000, 17}},
                {},
                {{1344, 656}, {2017, layout.n_elem() - 2017}}};
    for (const Trainable& t : layout.tensors()) {
      std::vector<int64_t> flat_of(static_cast<size_t>(t.n_elem()), -1);
      for (const VirtualPiece& p : pieces_of(t, slices)) {
        const size_t rank = static_cast<size_t>(std::stoi(p.file.substr(6, 5)));
        std::vector<int64_t> held;
        for (const Slice& s : slices[rank])
          for (int64_t i = 0; i < s.n_elem; ++i) held.push_back(s.begin + i);
        ASSERT_EQ(p.n_source, static_cast<int64_t>(held.size()));
        ASSERT_EQ(p.begin.size(), static_cast<size_t>(t.dims));
        const bool list = t.dims == 1;
        const int64_t rows = list ? 1 : p.count[0], width = p.count.back();
        int64_t source = p.source_begin;
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < width; ++j) {
            const int64_t at = ((list ? 0 : p.begin[0]) + i) * t.cols + p.begin.back() + j;
            EXPECT_EQ(flat_of.at(static_cast<size_t>(at)), -1);
            flat_of.at(static_cast<size_t>(at)) = held.at(static_cast<size_t>(source++));
          }
      }
      for (int64_t i = 0; i < t.n_elem(); ++i)
        ASSERT_EQ(flat_of[static_cast<size_t>(i)], t.offset + i) << t.name << " ranks " << ranks;
    }
  }
}

TEST_F(Checkpoints, ListsNewestFirstAndNothingElse) {
  EXPECT_TRUE(list_checkpoints(place()).empty());
  for (const int64_t step : {20, 100, 3}) save(place(), step, layout, flat);
  std::filesystem::create_directory(place() + "/step-00000200");  // damaged, yet named as one
  for (const char* name : {"step-00000300.tmp-1", ".trash-step-00000400-1", "step-5",
                           "step-0000060x", "step-00000000700", "other"})
    std::filesystem::create_directory(place() + "/" + name);
  std::filesystem::create_directory_symlink("step-00000100", place() + "/step-00000500");
  write_bytes(place() + "/step-00000600", "a file");
  std::vector<int64_t> steps;
  for (const CheckpointPlace& found : list_checkpoints(place())) {
    EXPECT_EQ(found.path, place() + "/" + checkpoint_name(found.step));
    steps.push_back(found.step);
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{200, 100, 20, 3}));
  EXPECT_TRUE(std::filesystem::exists(place() + "/step-00000300.tmp-1"))
      << "reading removes nothing";
}

TEST_F(Checkpoints, LeftOversGoAtTheNextSave) {
  save(place(), 1, layout, flat);
  save_shard(begin_checkpoint(place(), 2, 0), flat, 0, cut(layout, 2));  // and killed
  for (const char* name : {".trash-step-00000007-12", "step-00000009.tmp-1"}) {
    std::filesystem::create_directories(place() + "/" + name + "/adapter");
    write_bytes(place() + "/" + name + "/adapter/x", "x");
  }
  write_bytes(place() + "/LATEST.tmp-77-0", "x");
  write_bytes(dir / "precious", "x");
  std::filesystem::create_symlink(dir.str(), place() + "/step-00000010.tmp-2");
  write_bytes(place() + "/notes.tmp-1", "not ours");
  int n_signs = 0;
  abandon_checkpoint(begin_checkpoint(place(), 2, 0, [&](const auto&) { ++n_signs; }));
  EXPECT_GE(n_signs, 7) << "each directory, and each file in one";
  save(place(), 2, layout, flat);
  EXPECT_EQ(names_in(place()), (Names{"LATEST", "notes.tmp-1", "step-00000001", "step-00000002"}));
  EXPECT_TRUE(std::filesystem::exists(dir / "precious"));
  load(place() + "/step-00000002", layout);
}

TEST_F(Checkpoints, ReplacesTheSameStep) {
  save(place(), 7, layout, flat, {4});
  const FlatState other(layout, 2);
  const std::string path = save(place(), 7, layout, other, {2});
  EXPECT_EQ(names_in(place()), (Names{"LATEST", "step-00000007"}));
  const Checkpoint checkpoint(path);
  checkpoint.verify();
  EXPECT_EQ(checkpoint.ranks(), 2);
  EXPECT_EQ(read_all(checkpoint, Array::parameters, layout), other.parameters);
}

// As where somebody moved a checkpoint to another disk.
TEST_F(Checkpoints, ReplacesALinkAndNotWhatItLeadsTo) {
  namespace fs = std::filesystem;
  const std::string path = save(place(), 7, layout, flat), moved = dir / "moved";
  fs::rename(path, moved);
  fs::create_directory_symlink(moved, path);
  save(place(), 7, layout, flat);
  EXPECT_TRUE(fs::is_directory(fs::symlink_status(path)));
  EXPECT_EQ(names_in(place()), (Names{"LATEST", "step-00000007"}));
  load(moved, layout);
}

TEST_F(Checkpoints, KeepsTheNewestAndTheBest) {
  const std::map<int64_t, double> losses = {{1, 3.0}, {2, 2.0}, {3, 2.5}, {4, 2.0}, {6, 2.75}};
  for (int64_t step = 1; step <= 7; ++step) {
    const auto loss = losses.find(step);
    save(place(), step, layout, flat, {1, loss == losses.end() ? Json() : Json(loss->second)});
  }
  retain_checkpoints(place(), 2);  // of two as good, the newer is kept
  EXPECT_EQ(names_in(place()),
            (Names{"LATEST", "step-00000004", "step-00000006", "step-00000007"}));
  retain_checkpoints(place(), 10);
  retain_checkpoints(place(), 1);
  EXPECT_EQ(names_in(place()), (Names{"LATEST", "step-00000004", "step-00000007"}));
  load(place() + "/step-00000004", layout);
}

TEST_F(Checkpoints, DamagedOnesDoNotCountAsKept) {
  for (int64_t step = 1; step <= 6; ++step) save(place(), step, layout, flat, {1});
  for (const int64_t step : {6, 5, 2})
    std::filesystem::remove(place() + "/" + checkpoint_name(step) + "/COMMITTED");
  retain_checkpoints(place(), 2);
  EXPECT_EQ(names_in(place()),
            (Names{"LATEST", "step-00000003", "step-00000004", "step-00000005", "step-00000006"}));
}

TEST_F(Checkpoints, TooLittleRoomIsToldBeforeAnythingIsWritten) {
  expect_refused([&] { begin_checkpoint(place(), 1, int64_t{1} << 60); }, ExitCode::io,
                 {place(), "bytes are free", "1268", "make room"});
  EXPECT_TRUE(names_in(place()).empty());
}

// h5py and whoever reads HDF5 sees whole tensors, from any working directory.
TEST_F(Checkpoints, IndexShowsWholeTensorsToOthers) {
  const std::string path = save(place(), 1, layout, flat, {3});
  const Trainable& t = layout.tensors()[1];
  const std::string name = "/m/" + t.name;
  const std::string command =
      fmt::format("cd / && unset HDF5_VDS_PREFIX; h5dump -d {} -b LE -o {} {} > /dev/null 2>&1",
                  name, dir / "raw", path + "/index.h5");
  if (std::system("command -v h5dump > /dev/null") != 0) GTEST_SKIP() << "no h5dump";
  ASSERT_EQ(std::system(command.c_str()), 0);
  const std::string wanted(reinterpret_cast<const char*>(&flat.m[static_cast<size_t>(t.offset)]),
                           static_cast<size_t>(t.n_elem()) * sizeof(float));
  EXPECT_TRUE(read_bytes(dir / "raw") == wanted);
}

// tools/verify shares no code with the writer.
TEST_F(Checkpoints, VerifyTakesThem) {
  const std::string tools = source_dir() + "/tools";
  if (!std::filesystem::exists(tools + "/.venv/bin/python")) GTEST_SKIP() << "no tools/.venv";
  const auto verify = [&](const std::string& arguments) {
    const int status = std::system(
        fmt::format("cd / && {}/verify {} > {} 2>&1", tools, arguments, dir / "out").c_str());
    return WEXITSTATUS(status);
  };
  const FlatState other(layout, 2);
  const std::string three = save(place(), 1, layout, flat, {3, 1.5}),
                    two = save(place(), 2, layout, flat, {2}),
                    changed = save(place(), 3, layout, other, {1});
  EXPECT_EQ(verify(three), 0) << read_bytes(dir / "out");
  EXPECT_NE(read_bytes(dir / "out").find("eval loss  1.5"), std::string::npos);
  EXPECT_EQ(verify(three + " " + two), 0) << read_bytes(dir / "out");
  EXPECT_EQ(verify(three + " " + changed), 1) << read_bytes(dir / "out");
  std::filesystem::resize_file(two + "/index.h5", 100);
  EXPECT_EQ(verify(two), 5) << read_bytes(dir / "out");
}

}  // namespace
}  // namespace utrain
