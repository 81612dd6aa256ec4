#include "train/device_pass.h"

namespace utrain {

// The arena knows number types of tensors only; float32 stands for any four bytes here.
DevicePass::DevicePass(Backend& backend, Arena& arena, int64_t capacity)
    : backend_(backend),
      capacity_(capacity),
      id_(arena.declare("tokens of a pass", DType::f32, kArrays, capacity,
                        MemoryClass::workspace)) {}

void DevicePass::bind(const Arena& arena) {
  memory_ = arena[id_];
}

TokenBatch DevicePass::upload(const Pass& pass) {
  ASSERT(pass.n_tokens <= capacity_);
  const std::vector<int32_t>* const arrays[kArrays] = {
      &pass.tokens,    &pass.positions,   &pass.begin,   &pass.end,
      &pass.documents, &pass.target_rows, &pass.targets, &pass.rows_by_token};
  for (int i = 0; i < kArrays; ++i) {
    backend_.upload(array(i), arrays[i]->data(),
                    static_cast<int64_t>(arrays[i]->size() * sizeof(int32_t)));
  }
  TokenBatch batch;
  batch.n_rows = pass.n_tokens;
  batch.tokens = array(0);
  batch.positions = array(1);
  batch.begin = array(2);
  batch.end = array(3);
  batch.documents = array(4);
  batch.n_targets = pass.n_targets();
  batch.target_rows = array(5);
  batch.targets = array(6);
  batch.rows_by_token = array(7);
  return batch;
}

}  // namespace utrain
