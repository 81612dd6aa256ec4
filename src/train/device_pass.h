// The arrays of a pass on the device, at fixed addresses: a pass is uploaded into them and seen as
// a TokenBatch.
#pragma once

#include "backend.h"
#include "core/arena.h"
#include "data/pass.h"

namespace utrain {

class DevicePass {
 public:
  DevicePass(Backend& backend, Arena& arena, int64_t capacity);  // rows
  void bind(const Arena& arena);
  TokenBatch upload(
      Pass pass);  // padded to the backend's multiple of rows, as far as there is room

 private:
  static constexpr int kArrays = 8;
  void pad(Pass& pass) const;
  int32_t* array(int i) const { return static_cast<int32_t*>(memory_.data) + i * capacity_; }

  Backend& backend_;
  int64_t capacity_;
  Arena::Id id_;
  Tensor memory_;  // [kArrays, capacity] of 4-byte integers
};

}  // namespace utrain
