// What this binary is: revision, compiler, libraries.
#pragma once

#include <string>

namespace utrain {

std::string version();         // "0.1.0"
std::string revision();        // of git, "unknown" outside a checkout
std::string build_identity();  // equal builds have equal identities: what all ranks must share
std::string version_text();    // of --version, several lines

}  // namespace utrain
