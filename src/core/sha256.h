// SHA-256 (FIPS 180-4), to compare with hashes that other programs wrote; ours are XXH3.
#pragma once

#include <string>
#include <string_view>

namespace utrain {

std::string sha256(std::string_view bytes);  // 64 lower-case hexadecimal digits

}  // namespace utrain
