// The arrays of passes on the device, at fixed addresses: a pass is uploaded into a place and seen
// as a TokenBatch.
#pragma once

#include "backend.h"
#include "core/arena.h"
#include "data/pass.h"

namespace utrain {

class DevicePass {
 public:
  // capacity: rows of the largest pass. n_places: passes that are there together.
  DevicePass(Backend& backend, Arena& arena, int64_t capacity, int64_t n_places = 1);
  void bind(const Arena& arena);
  // Padded to the backend's multiple of rows, as far as there is room.
  TokenBatch upload(Pass pass, int64_t place = 0);

 private:
  static constexpr int kArrays = 8;
  void pad(Pass& pass) const;
  int32_t* array(int64_t place, int i) const {
    return static_cast<int32_t*>(memory_.row_range(place * kArrays + i, 1).data);
  }

  Backend& backend_;
  int64_t capacity_;
  Arena::Id id_;
  Tensor memory_;  // [n_places * kArrays, capacity] of 4-byte integers
};

}  // namespace utrain
