#include "app/save.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>

#include "core/convert.h"
#include "core/finite.h"
#include "core/pieces.h"
#include "io/file.h"
#include "io/json.h"
#include "io/peft_adapter.h"
#include "io/safetensors.h"

namespace utrain {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kShardBytes = 5'000'000'000;  // as save_pretrained

// A directory that goes again where what belongs into it could not be written whole.
class NewDirectory {
 public:
  explicit NewDirectory(const std::string& path) : path_(path) {
    std::error_code error;
    fs::create_directories(path, error);
    if (error) fail_io(path, "cannot make the directory", error.value());
  }
  ~NewDirectory() {
    std::error_code ignored;
    if (!keep_) fs::remove_all(path_, ignored);
  }
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;
  void keep() { keep_ = true; }

 private:
  std::string path_;
  bool keep_ = false;
};

FileDType in_file(DType dtype) {
  return dtype == DType::bf16  ? FileDType::bf16
         : dtype == DType::f16 ? FileDType::f16
                               : FileDType::f32;
}

// The files of a model that is being written, by rank 0: tensors come in the order of the layout.
class ModelWriter {
 public:
  ModelWriter(const std::string& dir, const TrainableLayout& layout, DType dtype)
      : directory_(dir), dir_(dir), dtype_(dtype) {
    int64_t bytes = 0;
    for (const Trainable& t : layout.tensors()) {
      const int64_t of_tensor = t.n_elem() * size_of(dtype);
      if (shards_.empty() || bytes + of_tensor > kShardBytes) {
        shards_.emplace_back();
        bytes = 0;
      }
      shards_.back().push_back(&t);
      bytes += of_tensor;
      total_bytes_ += of_tensor;
    }
  }

  // The next of the tensor's values.
  void write(const Trainable& t, std::span<const float> values) {
    if (!writer_) open_shard();
    bytes_.resize(values.size() * static_cast<size_t>(size_of(dtype_)));
    from_float(dtype_, values.data(), std::ssize(values), bytes_.data());
    writer_->write(t.name, bytes_.data(), std::ssize(bytes_));
  }

  // All values of the tensor are written.
  void end(const Trainable& t) {
    if (shards_[shard_].back() != &t) return;
    writer_->commit();
    writer_.reset();
    ++shard_;
  }

  // Everything else that a model directory holds.
  void finish(const std::string& source) {
    ASSERT(shard_ == shards_.size());
    if (shards_.size() > 1) write_index();
    const std::string config_path = source + "/config.json";
    Json config = parse_json(read_text_file(config_path, kMaxConfigBytes), config_path);
    config.set(config.find("dtype") != nullptr ? "dtype" : "torch_dtype",
               std::string(name_of(dtype_)));
    write_text_file(dir_ + "/config.json", to_pretty_text(config) + "\n");
    for (const fs::directory_entry& entry : fs::directory_iterator(source)) {
      const std::string name = entry.path().filename().string();
      const bool belongs = name == "generation_config.json" || name.starts_with("tokenizer") ||
                           name.starts_with("chat_template") || name == "special_tokens_map.json" ||
                           name == "added_tokens.json" || name == "vocab.json" ||
                           name == "merges.txt";
      if (!belongs || !entry.is_regular_file()) continue;
      const auto bytes = static_cast<int64_t>(entry.file_size());
      write_text_file(dir_ + "/" + name, read_text_file(entry.path().string(), bytes));
    }
    directory_.keep();
  }

 private:
  std::string name_of_shard(size_t i) const {
    return shards_.size() == 1
               ? "model.safetensors"
               : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size());
  }
  void open_shard() {
    writer_.emplace(dir_ + "/" + name_of_shard(shard_));
    for (const Trainable* t : shards_[shard_])
      writer_->declare(t->name, in_file(dtype_), t->shape());
  }
  void write_index() const {
    Json map = Json::object();
    for (size_t i = 0; i < shards_.size(); ++i)
      for (const Trainable* t : shards_[i]) map.set(t->name, name_of_shard(i));
    Json metadata = Json::object();
    metadata.set("total_size", total_bytes_);
    Json index = Json::object();
    index.set("metadata", metadata).set("weight_map", map);
    write_text_file(dir_ + "/model.safetensors.index.json", to_pretty_text(index) + "\n");
  }

  NewDirectory directory_;
  std::string dir_;
  DType dtype_;
  std::vector<std::vector<const Trainable*>> shards_;
  int64_t total_bytes_ = 0;
  size_t shard_ = 0;  // the one being written
  std::optional<SafetensorsWriter> writer_;
  std::vector<std::byte> bytes_;
};

}  // namespace

int64_t save_adapter(const std::string& dir, const TrainableLayout& layout,
                     const std::vector<float>& parameters, const Config& config,
                     const FileSign& sign) {
  const auto& tensors = layout.tensors();
  NewDirectory directory(dir);
  {
    SafetensorsWriter writer(adapter_weights_path(dir), sign);
    for (const Trainable& t : tensors) writer.declare(t.name, FileDType::f32, {t.rows, t.cols});
    for (const Trainable& t : tensors) {
      writer.write(t.name, &parameters[static_cast<size_t>(t.offset)],
                   t.rows * t.cols * static_cast<int64_t>(sizeof(float)));
    }
    writer.commit();
  }
  const Config::Lora& lora = config.lora;
  write_adapter_config(dir, {lora.r, lora.alpha, lora.dropout, lora.use_rslora, lora.target_modules,
                             config.model.path});
  show(sign, adapter_weights_path(dir));

  const SafetensorsFile back = open_adapter_weights(dir);
  bool b_is_zero = true;
  for (const Trainable& t : tensors) {
    show(sign, adapter_weights_path(dir));
    const StoredTensor* stored = back.find(t.name);
    std::vector<float> values(static_cast<size_t>(t.rows * t.cols));
    if (stored != nullptr && stored->n_elem() == t.rows * t.cols) {
      read_elements(*stored, 0, t.rows * t.cols, values.data());
    }
    if (!std::equal(values.begin(), values.end(), parameters.begin() + t.offset) ||
        !are_finite(values)) {
      fail(ExitCode::io, dir,
           fmt::format("{} reads back with other values than were written", t.name),
           "the file system may be faulty; run again elsewhere");
    }
    b_is_zero &= !t.name.ends_with(".lora_B.weight") ||
                 std::all_of(values.begin(), values.end(), [](float x) { return x == 0.0f; });
  }
  if (b_is_zero) {
    warn(dir + ": every B is zero, the adapter changes nothing (was lr 0 in all steps?)");
  }
  directory.keep();
  return static_cast<int64_t>(tensors.size());
}

SavedModel save_model(const std::string& dir, const std::string& source, DType dtype,
                      Trainer& trainer, const World& world) {
  const TrainableLayout& layout = trainer.model_state().layout();
  std::optional<ModelWriter> writer;
  world.first_rank([&] { writer.emplace(dir, layout, dtype); });
  auto next = layout.tensors().begin();
  std::vector<float> piece;
  for (int64_t u = 0; u < layout.n_units(); ++u) {
    const Trainables::Gathered unit = trainer.gather_parameters(u);
    const int64_t begin = layout.unit_begin()[static_cast<size_t>(u)];
    std::string not_finite;
    world.first_rank([&] {
      for (; next != layout.tensors().end() && next->unit == u && not_finite.empty(); ++next) {
        for_pieces(next->n_elem(), [&](int64_t first, int64_t n) {
          world.watchdog().progress();
          piece.resize(static_cast<size_t>(n));
          trainer.read(unit, next->offset - begin + first, piece);
          if (!are_finite(piece)) not_finite = next->name;
          if (not_finite.empty()) writer->write(*next, piece);
        });
        if (not_finite.empty()) writer->end(*next);
      }
    });
    not_finite = world.broadcast(not_finite);
    if (!not_finite.empty()) return {0, not_finite};
  }
  world.first_rank([&] { writer->finish(source); });
  return {static_cast<int64_t>(layout.tensors().size()), ""};
}

}  // namespace utrain
