// JSON (RFC 8259) read strictly and written compactly: config.json, safetensors headers,
// adapter_config.json, metrics.jsonl, summary.json.
//   Refused: duplicate keys, invalid UTF-8, a byte order mark, text after the value, too deep, too
//   many values. An integer token (1, -1) stays apart from a number token (1.0, 1e3): sizes are
//   never guessed from a double.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.h"

namespace utrain {

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;  // in the order of the text or of set()

  Json() = default;  // null
  Json(bool value) : value_(value) {}
  Json(std::integral auto value) : value_(integer_of(value)) {}
  Json(double value) : value_(value) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  static Json array() { return Json(Array{}); }
  static Json object() {
    Json json;
    json.value_ = Object{};
    return json;
  }

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(value_) || is_large_integer(); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  // Integers above the range of int64_t.
  bool is_large_integer() const { return std::holds_alternative<uint64_t>(value_); }

  // The caller has asked is_*() before.
  bool as_bool() const { return std::get<bool>(value_); }
  int64_t as_int64() const { return std::get<int64_t>(value_); }  // not for large integers
  uint64_t as_large_integer() const { return std::get<uint64_t>(value_); }
  double as_double() const;
  const std::string& as_string() const { return std::get<std::string>(value_); }
  const Array& as_array() const { return std::get<Array>(value_); }
  const Object& as_object() const { return std::get<Object>(value_); }
  Array& as_array() { return std::get<Array>(value_); }
  Object& as_object() { return std::get<Object>(value_); }

  const Json* find(std::string_view key) const;  // nullptr where absent; for objects
  Json& set(std::string key, Json value);        // adds a member or replaces it; returns *this
  Json& push_back(Json value);                   // for arrays; returns *this

 private:
  static std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string, Array, Object>
  integer_of(std::integral auto value) {
    if (std::in_range<int64_t>(value)) return static_cast<int64_t>(value);
    return static_cast<uint64_t>(value);
  }

  std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string, Array, Object> value_;
};

struct JsonLimits {
  int64_t depth = 64;
  int64_t values = 1 << 20;  // scalars, arrays and objects together: about 100 bytes of memory each
};

// Fails with code and "where: byte N: ..." on anything that is not exactly one JSON value.
Json parse_json(std::string_view text, const std::string& where, ExitCode code = ExitCode::bad_file,
                const JsonLimits& limits = {});

// Text of a file for messages: quoted and escaped as in JSON, one line of at most about 80 bytes.
std::string in_quotes(const std::string& text);
// The kind and value in a few words, for messages: `string "abc"`, `number 4.0`, `array of 3`.
std::string describe(const Json& json);

// Floats are the shortest that read back the same (a whole one keeps its ".0"); non-finite = null.
std::string to_text(const Json& json);
std::string to_pretty_text(const Json& json);  // two spaces a level, no newline at the end

// Reads the members of one object; each fault is "WHERE: key: X found, Y wanted; ...". A null
// member is an absent one. The object must outlive its reader.
class JsonObjectReader {
 public:
  JsonObjectReader(const Json& object, std::string where, ExitCode code = ExitCode::bad_file);

  bool has(std::string_view key) const { return find(key) != nullptr; }
  const Json* find(std::string_view key) const;  // nullptr where absent or null
  const Json& at(std::string_view key) const;

  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer_or(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  double number(std::string_view key) const;  // an integer token will do
  double number_or(std::string_view key, double fallback) const;
  bool boolean(std::string_view key) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  const std::string& string(std::string_view key) const;
  std::string string_or(std::string_view key, std::string fallback) const;
  std::vector<std::string> strings(std::string_view key) const;
  JsonObjectReader object(std::string_view key) const;

  [[noreturn]] void fail_key(std::string_view key, std::string_view what,
                             std::string_view remedy) const;
  const Json& json() const { return *object_; }
  const std::string& where() const { return where_; }

 private:
  const Json* object_;
  std::string where_;
  ExitCode code_;
};

}  // namespace utrain
