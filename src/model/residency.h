// Who holds what a unit computes with and where its gradients go: replicated, sharded over ranks,
// or in host memory. The transformer asks and does not know. Units are 0 .. L - 1, the layers, and
// L, the ends (embedding, final norm, head). All ranks make the same calls in the same order. Views
// of weights and gradients have fixed addresses; these calls say when they hold what they should.
#pragma once

#include <cstdint>

namespace utrain {

class Residency {
 public:
  virtual ~Residency() = default;
  virtual void get(int64_t unit) = 0;      // its weights are there until
  virtual void release(int64_t unit) = 0;  // this
  // In a backward pass: its gradients may be added to from now until ...
  virtual void begin_gradients(int64_t unit) = 0;
  virtual void end_gradients(int64_t unit) = 0;  // ... this pass adds nothing more to them
};

// Everything is where it is computed with, all the time.
class AlwaysThere : public Residency {
 public:
  void get(int64_t) override {}
  void release(int64_t) override {}
  void begin_gradients(int64_t) override {}
  void end_gradients(int64_t) override {}
};

}  // namespace utrain
