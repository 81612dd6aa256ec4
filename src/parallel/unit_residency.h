// Residency of a training run: the base's images, the adapters' values where they are apart, and
// the gradients.
#pragma once

#include "model/residency.h"
#include "parallel/trainables.h"

namespace utrain {

class UnitResidency : public Residency {
 public:
  // adapters: null where the images themselves are trained. All outlive this object.
  UnitResidency(UnitStore& images, UnitStore* adapters, Trainables& trainables)
      : images_(images), adapters_(adapters), trainables_(trainables) {}

  void get(int64_t unit) override {
    trainables_.get(unit);
    images_.get(unit);
    if (adapters_ != nullptr) adapters_->get(unit);
  }
  void release(int64_t unit) override {
    images_.release(unit);
    if (adapters_ != nullptr) adapters_->release(unit);
  }
  void begin_gradients(int64_t unit) override { trainables_.begin_gradients(unit); }
  void end_gradients(int64_t unit) override { trainables_.end_gradients(unit); }

 private:
  UnitStore& images_;
  UnitStore* adapters_;
  Trainables& trainables_;
};

}  // namespace utrain
