// Where the repository and ./utrain are. The environment comes before what was compiled in: a
// bundle (tools/bundle) holds copies of both and its env tells where.
#pragma once

#include <cstdlib>
#include <string>

namespace utrain {

inline std::string source_dir() {
  const char* given = std::getenv("UTRAIN_SOURCE_DIR");
  return given != nullptr ? given : UTRAIN_SOURCE_DIR;
}

// The path of ./utrain.
inline std::string binary() {
  const char* given = std::getenv("UTRAIN_BINARY");
  return given != nullptr ? given : UTRAIN_BINARY;
}

inline std::string golden_path(const std::string& name) {
  return source_dir() + "/tests/golden/" + name;
}

}  // namespace utrain
