// What a run takes after its steps is planned before them: a model is written, a stop saved and gone
// on from within the memory of the start table. A model of few layers, whose ends (embedding, norm,
// head) are one unit of nearly all that is trained.
#include <thread>

#include "app/progress.h"
#include "checkpoint/read.h"
#include "core/arena.h"
#include "io/safetensors.h"
#include "launch.h"
#include "model/full.h"
#include "token_files.h"

namespace utrain {
namespace {

constexpr int64_t kVocab = 24000, kHidden = 512;
constexpr int64_t kUnitBytes = 2 * kVocab * kHidden * 4;  // 98 MB, in float32
constexpr int64_t kPieces = kUnitBytes * 3 / 4;           // whatever is taken besides

class PlannedMemory : public testing::Test {
 protected:
  PlannedMemory() {
    std::filesystem::create_directories(dir_ / "model");
    write_bytes(dir_ / "model/config.json",
                fmt::format(R"({{"model_type": "llama", "hidden_size": {}, "vocab_size": {},
                  "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
                  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
                  "tie_word_embeddings": false}})",
                            kHidden, kVocab));
    test::write_token_data_set(dir_ / "train.h5",
                               test::make_token_data_set(std::vector<int64_t>(64, 16), kVocab));
    write_bytes(dir_ / "input.toml",
                fmt::format("[model]\npath = \"{0}/model\"\ninit = \"random\"\n"
                            "[data]\ntrain = \"{0}/train.h5\"\nseq_len = 16\n"
                            "[train]\nmethod = \"full\"\nmax_steps = 2\nglobal_batch_size = 2\n"
                            "micro_batch_size = 1\n[run]\nbackend = \"cpu\"\n",
                            dir_.str()));
  }
  std::vector<std::string> words(const std::string& run, const std::string& more = "") const {
    std::vector<std::string> words = {dir_ / "input.toml", "--run.dir=" + (dir_ / run)};
    if (!more.empty()) words.push_back(more);
    return words;
  }
  Outcome run(const std::string& name, const std::string& more = "") const {
    const Outcome outcome = launch(kAlone, words(name, more));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.text();
    return outcome;
  }

  // As the start table has it.
  int64_t host_bytes(const std::string& run) const {
    const Json summary = read_json((dir_ / run) + "/summary.json");
    return summary.find("peak_memory_bytes")->find("host")->as_int64();
  }

  TempDir dir_;
};

TEST_F(PlannedMemory, HoldsTheModelThatIsWritten) {
  const Outcome steps = run("dry", "--dry-run=2"), all = run("all", "--checkpoint.every=2");
  const int64_t copy = host_bytes("all");
  EXPECT_GT(copy, 3 * kUnitBytes);
  EXPECT_LT(all.peak_bytes, steps.peak_bytes + copy + kPieces);
  // In pieces, and yet what the checkpoint of that step has.
  const SafetensorsFile model(dir_ / "all/model/model.safetensors");
  const Checkpoint checkpoint(dir_ / "all/checkpoints/step-00000002");
  const TrainableLayout layout = full_layout(read_architecture(dir_ / "model"));
  for (const Trainable& t : layout.tensors()) {
    std::vector<float> written(static_cast<size_t>(t.n_elem())), wanted(written.size());
    read_elements(*model.find(t.name), 0, t.n_elem(), written.data());
    checkpoint.read(Checkpoint::Array::parameters, {t.offset, t.n_elem()}, wanted.data());
    EXPECT_TRUE(written == wanted) << t.name;
  }
}

TEST_F(PlannedMemory, HoldsTheModelWithoutACopy) {
  const Outcome steps = run("dry", "--dry-run=2"), all = run("all");
  EXPECT_LT(all.peak_bytes, steps.peak_bytes + kPieces);
}

TEST_F(PlannedMemory, HoldsTheCopyOfAStop) {
  const Outcome steps = run("dry", "--dry-run=2");
  Launch stopped(kAlone, words("run", "--train.max_steps=100000"));
  const std::string metrics = dir_ / "run/metrics.jsonl";
  const auto has_steps = [&] {
    return std::filesystem::exists(metrics) && !read_metrics(metrics).empty();
  };
  while (stopped.is_running() && !has_steps())
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ASSERT_GT(stopped.pid(), 0) << stopped.wait().text();
  ::kill(stopped.pid(), SIGTERM);
  const Outcome outcome = stopped.wait();
  EXPECT_EQ(outcome.exit_code, 75) << outcome.text();
  const int64_t copy = host_bytes("run");
  EXPECT_GT(copy, 3 * kUnitBytes);
  EXPECT_LT(outcome.peak_bytes, steps.peak_bytes + copy + kPieces);
  int64_t sum = 0;
  const Json summary = read_json(dir_ / "run/summary.json");
  for (const MemoryClass m : kMemoryClasses)
    sum += summary.find("peak_memory_bytes")->find(name_of(m))->as_int64();
  EXPECT_NE(outcome.out.find(fmt::format("  memory     {} a rank: ", text_of_bytes(sum))),
            std::string::npos)
      << outcome.text();
  EXPECT_NE(outcome.out.find(text_of_bytes(sum) + " planned a rank"), std::string::npos)
      << outcome.text();
  // Nor does going on take more, which copies nothing.
  const double last = curve(read_metrics(metrics), "step").back();
  std::vector<std::string> more = words("run", fmt::format("--train.max_steps={}", last + 1));
  more.push_back("--checkpoint.allow_changes=[\"train.max_steps\"]");
  const Outcome resumed = launch(kAlone, more);
  EXPECT_EQ(resumed.exit_code, 0) << resumed.text();
  EXPECT_NE(resumed.out.find("  continues "), std::string::npos) << resumed.text();
  EXPECT_LT(resumed.peak_bytes, steps.peak_bytes + kPieces);
}

}  // namespace
}  // namespace utrain
