// Passes that go through the layers together: the bits of one after the other, however many; as
// many as there is memory for.
#include "train/choose_passes.h"

#include <gtest/gtest.h>

#include "comm/silent_collectives.h"
#include "config/input_file.h"
#include "launch.h"
#include "train/trainer.h"

namespace utrain {
namespace {

// The golden documents, eight rows a step, one row a pass.
Job job_of(const std::string& name, int ranks, const std::vector<Override>& more) {
  std::vector<Override> overrides = {{"data.packing", "false"}};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return read_job(parse_config(golden_input(name, "unused"), "passes.toml", overrides), ranks);
}

struct Result {
  std::vector<double> numbers;  // of steps and an evaluation
  std::vector<float> parameters, gradients;

  bool operator==(const Result&) const = default;
};

Result train(const Job& job, Recompute recompute, int64_t passes_together) {
  const std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32);
  SilentCollectives alone;
  Trainer trainer(job, *backend, alone,
                  std::vector<Recompute>(static_cast<size_t>(job.architecture.n_layers), recompute),
                  passes_together);
  trainer.load();
  trainer.loaded();
  Result result;
  for (int64_t step = 1; step <= 3; ++step) {
    for (const StepStats& stats : trainer.train_step(step)) {
      result.numbers.push_back(stats.loss);
      result.numbers.push_back(stats.grad_norm);
    }
  }
  if (job.has_eval()) result.numbers.push_back(trainer.evaluate().loss);
  result.gradients = trainer.gradients_on_host();
  result.parameters = trainer.parameters_on_host();
  return result;
}

TEST(Passes, TogetherHaveTheBitsOfOneAfterTheOther) {
  const std::string eval = "\"" + golden_path("llama") + "/tokens.h5\"";
  for (const char* offload : {"false", "true"}) {
    const Job job = job_of("llama", 1,
                           {{"lora.dropout", "0.1"},
                            {"data.eval", eval},
                            {"train.lr", "0.01"},
                            {"parallel.offload_params", offload}});
    const int64_t n = passes_of_step(job);
    ASSERT_EQ(n, 8);
    const Result wanted = train(job, Recompute::keep, 1);
    ASSERT_EQ(wanted.numbers.size(), 7u);
    EXPECT_NE(wanted.numbers[0], wanted.numbers[4]) << "it learns";
    for (const Recompute recompute :
         {Recompute::keep, Recompute::mlp, Recompute::block, Recompute::offload}) {
      for (const int64_t together : {int64_t{2}, int64_t{3}, n, n + 1}) {
        SCOPED_TRACE(fmt::format("policy {}, {} together, offload_params {}",
                                 static_cast<int>(recompute), together, offload));
        EXPECT_TRUE(train(job, recompute, together) == wanted);
      }
    }
  }
}

TEST(Passes, TogetherHaveTheBitsOfOneAfterTheOtherWhereAllIsTrained) {
  const Job job = job_of("llama_full", 1, {});
  const Result wanted = train(job, Recompute::keep, 1);
  for (const int64_t together : {3, 8})
    EXPECT_TRUE(train(job, Recompute::block, together) == wanted) << together;
}

TEST(Passes, AsManyAsFitWhereOneCopyOfALayerServesThem) {
  const std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32);
  SilentCollectives collectives(0, 2);
  const auto chosen = [&](const std::vector<Override>& more, int64_t budget) {
    const Job job = job_of("llama", 2, more);
    const std::vector<Recompute> policy(static_cast<size_t>(job.architecture.n_layers),
                                        Recompute::keep);
    return choose_passes(job, *backend, collectives, policy,
                         [&](const Arena& arena) { return arena.bytes() <= budget; });
  };
  constexpr int64_t kPlenty = int64_t{1} << 40;
  EXPECT_EQ(chosen({}, kPlenty), 1) << "ddp";
  EXPECT_EQ(chosen({{"parallel.strategy", "zero2"}}, kPlenty), 1);
  EXPECT_EQ(chosen({{"parallel.offload_params", "true"}}, kPlenty), 4);
  const Override zero3 = {"parallel.strategy", "zero3"};
  EXPECT_EQ(chosen({zero3}, kPlenty), 4) << "of two ranks";
  EXPECT_EQ(chosen({zero3, {"train.micro_batch_size", "3"}}, kPlenty), 2);
  EXPECT_EQ(chosen({zero3, {"train.global_batch_size", "100"}}, kPlenty), 4) << "rows there are";
  EXPECT_EQ(chosen({zero3}, 0), 1) << "what one pass needs was chosen before";

  const Job job = job_of("llama", 2, {zero3});
  const auto bytes_of = [&](int64_t passes) {
    const std::vector<Recompute> policy(static_cast<size_t>(job.architecture.n_layers),
                                        Recompute::keep);
    return Trainer(job, *backend, collectives, policy, passes).arena().bytes();
  };
  for (int64_t n = 1; n < 4; ++n) {
    EXPECT_LT(bytes_of(n), bytes_of(n + 1));
    EXPECT_EQ(chosen({zero3}, bytes_of(n)), n);
    EXPECT_EQ(chosen({zero3}, bytes_of(n + 1) - 1), n);
  }
}

}  // namespace
}  // namespace utrain
