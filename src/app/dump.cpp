#include "app/dump.h"

#include <algorithm>
#include <map>

#include "comm/mpi_collectives.h"
#include "io/safetensors.h"

namespace utrain {

namespace {

constexpr int64_t kMostLogits = int64_t{1} << 28;  // elements

// document -> logits [length, V] of the first global batch, on rank 0. Each document travels alone,
// from the rank that holds it.
std::map<int64_t, std::vector<float>> gather_logits(const Job& job, Trainer& trainer,
                                                    Collectives& collectives) {
  std::map<int64_t, std::vector<float>> own;
  trainer.visit_logits(
      [&](int64_t document, int64_t, const std::vector<float>& logits) { own[document] = logits; });
  std::map<int64_t, std::vector<float>> all;
  for (const int64_t row : job.plan().step(1).rows) {
    for (const Piece& piece : job.train_rows.rows[static_cast<size_t>(row)]) {
      const auto found = own.find(piece.document);
      const auto owner = static_cast<int>(
          collectives.all_reduce_max(found == own.end() ? -1 : collectives.rank()));
      std::vector<float> logits(static_cast<size_t>(piece.length * job.architecture.vocab_size));
      if (owner == collectives.rank()) logits = found->second;
      collectives.broadcast(
          make_tensor(logits.data(), DType::f32, 1, static_cast<int64_t>(logits.size())), owner);
      if (collectives.rank() == 0) all[piece.document] = std::move(logits);
    }
  }
  return all;
}

}  // namespace

void write_dump(const std::string& path, const Job& job, Trainer& trainer, const World& world) {
  MpiCollectives collectives(world);  // logits are gathered in host memory, wherever they were made
  const StepStats stats = trainer.first_batch();
  std::map<int64_t, std::vector<float>> logits;
  const int64_t V = job.architecture.vocab_size;
  const bool with_logits = V * stats.tokens < kMostLogits;
  if (with_logits) logits = gather_logits(job, trainer, collectives);

  const std::vector<float> gradients = trainer.gradients_on_host();
  const std::vector<Trainable>& tensors = trainer.model_state().layout().tensors();
  const auto loss = static_cast<float>(stats.loss);
  world.first_rank([&] {
    SafetensorsWriter writer(path);
    writer.declare("loss", FileDType::f32, {});
    const auto logits_name = [](int64_t document) { return fmt::format("logits.{}", document); };
    for (const auto& [document, values] : logits) {
      writer.declare(logits_name(document), FileDType::f32,
                     {static_cast<int64_t>(values.size()) / V, V});
    }
    for (const Trainable& t : tensors) writer.declare("grad." + t.name, FileDType::f32, t.shape());
    writer.write("loss", &loss, sizeof loss);
    for (const auto& [document, values] : logits) {
      writer.write(logits_name(document), values.data(),
                   static_cast<int64_t>(values.size() * sizeof(float)));
    }
    for (const Trainable& t : tensors) {
      writer.write("grad." + t.name, &gradients[static_cast<size_t>(t.offset)],
                   t.n_elem() * static_cast<int64_t>(sizeof(float)));
    }
    writer.commit();
    fmt::print("{}: loss {:.6f} over {} targets, {} gradients, logits of {} documents\n", path,
               stats.loss, stats.target_tokens, tensors.size(), logits.size());
    if (!with_logits) fmt::print("logits left out: {} x {} is too many\n", stats.tokens, V);
  });
}

}  // namespace utrain
