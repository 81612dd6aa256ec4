// From a value somebody wrote to the member of Config, or to the sentence that says what is wrong
// with it.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "config/keys.h"

namespace utrain {

// A value as TOML has it. What no key can hold (a table, a date) has no data, only its description.
struct Value {
  std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<Value>> data;
  std::string found;  // "8", "the string \"8\"", "a table"
};

// "found FOUND, wanted WANTED; REMEDY", or "" when the member is set.
std::string assign(const Key& key, const Value& value, Config& config);

// "not in this version: ...", or "" when this version can run the value that config holds.
std::string check_built(const Key& key, const Config& config);

}  // namespace utrain
