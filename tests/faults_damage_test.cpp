// Bits flip, files are cut, exchanged and deleted in the newest checkpoint of a run that was
// killed: the run says so in one warning, goes on from the one before, and ends with the same bits.
#include "faults/fault_run.h"

namespace utrain {
namespace {

class Damaged : public testing::Test {
 protected:
  // A run that died at step 33 or so, with three checkpoints; kept aside.
  static void SetUpTestSuite() {
    run_ = std::make_unique<FaultRun>();
    auto launch =
        run_->start("rank=0 call=create path=/checkpoints/step-00000035 nth=1 do=killall");
    const Outcome outcome = launch->wait();
    ASSERT_EQ(launch->struck().size(), 1u) << outcome.text();
    ASSERT_GE(run_->checkpoint_steps().size(), 2u) << outcome.text();
    newest_ = fmt::format("step-{:08}", run_->checkpoint_steps().back());
    fs::copy(run_->run_dir(), run_->file("kept"), fs::copy_options::recursive);
    for (const auto& entry : fs::recursive_directory_iterator(run_->checkpoints() + "/" + newest_))
      if (entry.is_regular_file() && entry.file_size() > 0)
        files_.push_back(fs::relative(entry.path(), run_->checkpoints()).string());
    std::ranges::sort(files_);
  }
  static void TearDownTestSuite() { run_.reset(); }

  void SetUp() override { put_back(); }
  static void put_back() {
    run_->clear();
    fs::copy(run_->file("kept"), run_->run_dir(), fs::copy_options::recursive);
  }
  static std::string path(const std::string& file) { return run_->checkpoints() + "/" + file; }

  // Goes on past what was damaged: one warning that names the checkpoint, and the same end.
  static void expect_told_and_outlived() {
    const Outcome outcome = run_->go_on();
    ASSERT_EQ(outcome.exit_code, 0) << outcome.text();
    int warnings = 0;
    std::istringstream lines(outcome.err);
    for (std::string line; std::getline(lines, line);)
      warnings += line.starts_with("utrain: warning: ") && line.find(newest_) != line.npos &&
                  line.find("damaged") != line.npos;
    EXPECT_EQ(warnings, 1) << outcome.text();
    const FaultRun::Result found = run_->result(), &wanted = FaultRun::reference();
    EXPECT_TRUE(found.adapter == wanted.adapter) << outcome.text();
    EXPECT_EQ(found.metrics, wanted.metrics) << outcome.text();
  }

  static std::unique_ptr<FaultRun> run_;
  static std::string newest_;
  static Words files_;  // of the newest checkpoint, from checkpoints/ on
};

std::unique_ptr<FaultRun> Damaged::run_;
std::string Damaged::newest_;
Words Damaged::files_;

TEST_F(Damaged, BitsFlipped) {
  Campaign campaign("F5 bit flips");
  for (int i = 0; i < count_of(6, 300) && !HasFailure(); ++i) {
    put_back();
    const std::string file = files_[static_cast<size_t>(i) % files_.size()];
    std::string bytes = read_bytes(path(file));
    const auto bit = campaign.below(8 * static_cast<int64_t>(bytes.size()));
    bytes[static_cast<size_t>(bit / 8)] ^= static_cast<char>(1 << (bit % 8));
    write_bytes(path(file), bytes);
    SCOPED_TRACE(fmt::format("bit {} of {}", bit, file));
    expect_told_and_outlived();
    campaign.count("flips");
  }
}

TEST_F(Damaged, FilesCutOff) {
  Campaign campaign("F5 truncations");
  for (int i = 0; i < count_of(3, 40) && !HasFailure(); ++i) {
    put_back();
    const std::string file = files_[static_cast<size_t>(3 * i + 1) % files_.size()];
    const auto bytes = campaign.below(static_cast<int64_t>(fs::file_size(path(file))));
    fs::resize_file(path(file), static_cast<uintmax_t>(bytes));
    SCOPED_TRACE(fmt::format("{} cut to {} bytes", file, bytes));
    expect_told_and_outlived();
    campaign.count("truncations");
  }
}

TEST_F(Damaged, FilesMissing) {
  Campaign campaign("F5 missing files");
  const auto n = static_cast<int>(files_.size());
  const int wanted = std::min(n, count_of(3, n));
  for (int i = 0; i < wanted && !HasFailure(); ++i) {
    const std::string& file = files_[static_cast<size_t>(i * n / wanted)];
    put_back();
    fs::remove(path(file));
    SCOPED_TRACE("without " + file);
    expect_told_and_outlived();
    campaign.count("files removed");
  }
}

TEST_F(Damaged, FilesExchanged) {
  Campaign campaign("F5 exchanged files");
  const std::string older = path(fmt::format("step-{:08}", run_->checkpoint_steps().front()));
  const auto n = static_cast<int>(files_.size());
  const int wanted = std::min(n, count_of(3, n));
  for (int i = 0; i < wanted && !HasFailure(); ++i) {
    put_back();
    const std::string& file = files_[static_cast<size_t>(i * n / wanted)];
    const std::string other = older + file.substr(file.find('/'));
    if (read_bytes(path(file)) == read_bytes(other)) continue;  // the same in every checkpoint
    fs::copy_file(other, path(file), fs::copy_options::overwrite_existing);
    SCOPED_TRACE("the older " + file);
    expect_told_and_outlived();
    campaign.count("files exchanged");
  }
  // Two shards of one checkpoint.
  put_back();
  const std::string first = path(newest_ + "/shard-00000-of-00004.h5");
  fs::rename(first, first + ".x");
  fs::rename(path(newest_ + "/shard-00002-of-00004.h5"), first);
  fs::rename(first + ".x", path(newest_ + "/shard-00002-of-00004.h5"));
  expect_told_and_outlived();
  campaign.count("files exchanged");
}

TEST_F(Damaged, NoneLeftThatIsWhole) {
  for (const int64_t step : run_->checkpoint_steps())
    fs::resize_file(path(fmt::format("step-{:08}/manifest.json", step)), 1);
  const Outcome outcome = run_->go_on();
  EXPECT_EQ(outcome.exit_code, 5) << outcome.text();
  EXPECT_GE(outcome.error_lines().size(), 1u) << outcome.text();
}

TEST_F(Damaged, WhatPointsToTheNewestIsAHintOnly) {
  for (const char* text : {"", "step-99999999\n", "../../etc\n"}) {
    put_back();
    write_bytes(path("LATEST"), text);
    run_->expect_finishes_as_if_nothing_was();
  }
  put_back();
  fs::remove(path("LATEST"));
  run_->expect_finishes_as_if_nothing_was();
}

}  // namespace
}  // namespace utrain
