#include "train/device_pass.h"

#include <algorithm>

namespace utrain {

// The arena knows number types of tensors only; float32 stands for any four bytes here.
DevicePass::DevicePass(Backend& backend, Arena& arena, int64_t capacity, int64_t n_places)
    : backend_(backend),
      capacity_(capacity),
      id_(arena.declare("tokens of a pass", DType::f32, n_places * kArrays, capacity,
                        MemoryClass::workspace)) {}

void DevicePass::bind(const Arena& arena) {
  memory_ = arena[id_];
}

// Padding rows are documents of one token without a target; of the largest token, so that they end
// the order by token.
void DevicePass::pad(Pass& pass) const {
  const int64_t multiple = backend_.row_multiple();
  const int64_t n_rows = std::min(capacity_, (pass.n_tokens + multiple - 1) / multiple * multiple);
  const int32_t token = pass.tokens[static_cast<size_t>(pass.rows_by_token.back())];
  for (auto row = static_cast<int32_t>(pass.n_tokens); row < n_rows; ++row) {
    pass.tokens.push_back(token);
    pass.positions.push_back(0);
    pass.begin.push_back(row);
    pass.end.push_back(row + 1);
    pass.documents.push_back(-1);
    pass.rows_by_token.push_back(row);
  }
}

TokenBatch DevicePass::upload(Pass pass, int64_t place) {
  ASSERT(pass.n_tokens > 0 && pass.n_tokens <= capacity_);
  pad(pass);
  const std::vector<int32_t>* const arrays[kArrays] = {
      &pass.tokens,    &pass.positions,   &pass.begin,   &pass.end,
      &pass.documents, &pass.target_rows, &pass.targets, &pass.rows_by_token};
  for (int i = 0; i < kArrays; ++i) {
    backend_.upload(array(place, i), arrays[i]->data(),
                    static_cast<int64_t>(arrays[i]->size() * sizeof(int32_t)));
  }
  TokenBatch batch;
  batch.n_rows = static_cast<int64_t>(pass.tokens.size());
  batch.tokens = array(place, 0);
  batch.positions = array(place, 1);
  batch.begin = array(place, 2);
  batch.end = array(place, 3);
  batch.documents = array(place, 4);
  batch.n_targets = pass.n_targets();
  batch.target_rows = array(place, 5);
  batch.targets = array(place, 6);
  batch.rows_by_token = array(place, 7);
  return batch;
}

}  // namespace utrain
