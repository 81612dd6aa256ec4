// The check that a call fails with what all ranks know.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace utrain {

template <class F>
void expect_shared_error(ExitCode code, const std::string& text, const F& call) {
  try {
    call();
    ADD_FAILURE() << "no error; wanted " << text;
  } catch (const SharedError& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

}  // namespace utrain
