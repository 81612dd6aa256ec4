// A variable that has another value for as long as this lives, and its own again afterwards,
// however the scope is left.
#pragma once

#include <utility>

namespace utrain {

template <class T>
class Meanwhile {
 public:
  Meanwhile(T& variable, T value) : variable_(variable), own_(std::move(variable)) {
    variable_ = std::move(value);
  }
  ~Meanwhile() { variable_ = std::move(own_); }
  Meanwhile(const Meanwhile&) = delete;
  Meanwhile& operator=(const Meanwhile&) = delete;

 private:
  T& variable_;
  T own_;
};

}  // namespace utrain
