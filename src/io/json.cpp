#include "io/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace utrain {
namespace {

// A string as JSON text; bytes that are not UTF-8 become U+FFFD. The control characters that JSON
// lets stand (DEL, U+0080 to U+009F) are escaped too: a terminal would obey them in a message.
std::string string_text(const std::string& text) {
  const std::string dumped =
      nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::string out;
  out.reserve(dumped.size());
  for (size_t i = 0; i < dumped.size(); ++i) {
    const auto c = static_cast<unsigned char>(dumped[i]);
    const auto next = static_cast<unsigned char>(i + 1 < dumped.size() ? dumped[i + 1] : 0);
    if (c == 0x7F) {
      out += "\\u007f";
    } else if (c == 0xC2 && next >= 0x80 && next < 0xA0) {
      out += fmt::format("\\u{:04x}", next);
      ++i;
    } else {
      out += dumped[i];
    }
  }
  return out;
}

// Builds the value while the parser runs, so that limits hold before memory is taken.
// Pointers in open_ stay valid: an array or object grows only after its last child is closed.
class JsonBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonBuilder(const std::string& where, ExitCode code, const JsonLimits& limits)
      : where_(where), code_(code), limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(Json()) != nullptr; }
  bool boolean(bool value) override { return add(Json(value)) != nullptr; }
  bool number_integer(int64_t value) override {
    // Only negative tokens come here; -0 is no integer to a reader of sizes.
    return add(value == 0 ? Json(-0.0) : Json(value)) != nullptr;
  }
  bool number_unsigned(uint64_t value) override { return add(Json(value)) != nullptr; }
  bool number_float(double value, const std::string&) override {
    return add(Json(value)) != nullptr;
  }
  bool string(std::string& value) override { return add(Json(std::move(value))) != nullptr; }
  bool binary(nlohmann::json::binary_t&) override { return false; }

  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool end_object() override {
    refuse_duplicate_keys(open_.back()->as_object());
    return close();
  }
  bool key(std::string& name) override {
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    std::string what = error.what();
    const size_t prefix = what.find("] ");
    if (prefix != std::string::npos) what.erase(0, prefix + 2);
    if (what.size() > 200) what = what.substr(0, 200) + "...";
    // A cut token may end inside a character: quoting replaces such bytes, the quotes go again.
    what = string_text(what);
    fail(code_, where_,
         fmt::format("byte {}: not valid JSON: {}", position, what.substr(1, what.size() - 2)),
         "repair the file or fetch it again");
  }

 private:
  Json* add(Json value) {
    if (++n_values_ > limits_.values) {
      fail(code_, where_, fmt::format("more than {} JSON values found", limits_.values),
           "this is not a file of the expected kind");
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) return &parent.as_array().emplace_back(std::move(value));
    return &parent.as_object().emplace_back(std::move(key_), std::move(value)).second;
  }

  bool open(Json value) {
    if (static_cast<int64_t>(open_.size()) >= limits_.depth) {
      fail(code_, where_, fmt::format("JSON nested deeper than {} levels found", limits_.depth),
           "this is not a file of the expected kind");
    }
    open_.push_back(add(std::move(value)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  void refuse_duplicate_keys(const Json::Object& object) const {
    std::vector<std::string_view> keys;
    keys.reserve(object.size());
    for (const Json::Member& member : object) keys.push_back(member.first);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return;
    fail(code_, where_, fmt::format("key {} found twice", in_quotes(std::string(*twice))),
         "each key of an object may stand once: repair the file");
  }

  const std::string& where_;
  ExitCode code_;
  JsonLimits limits_;
  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  int64_t n_values_ = 0;
};

std::string text_of_double(double value) {
  if (!std::isfinite(value)) return "null";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

// indent < 0: all on one line.
void append_text(std::string& out, const Json& json, int indent, int level) {
  const auto new_line = [&](int depth) {
    if (indent >= 0) out += '\n' + std::string(static_cast<size_t>(indent * depth), ' ');
  };
  if (json.is_null()) {
    out += "null";
  } else if (json.is_bool()) {
    out += json.as_bool() ? "true" : "false";
  } else if (json.is_large_integer()) {
    out += fmt::format("{}", json.as_large_integer());
  } else if (json.is_integer()) {
    out += fmt::format("{}", json.as_int64());
  } else if (json.is_number()) {
    out += text_of_double(json.as_double());
  } else if (json.is_string()) {
    out += string_text(json.as_string());
  } else if (json.is_array()) {
    out += '[';
    bool first = true;
    for (const Json& element : json.as_array()) {
      if (!first) out += ',';
      first = false;
      new_line(level + 1);
      append_text(out, element, indent, level + 1);
    }
    if (!first) new_line(level);
    out += ']';
  } else {
    out += '{';
    bool first = true;
    for (const auto& [key, value] : json.as_object()) {
      if (!first) out += ',';
      first = false;
      new_line(level + 1);
      out += string_text(key) + (indent >= 0 ? ": " : ":");
      append_text(out, value, indent, level + 1);
    }
    if (!first) new_line(level);
    out += '}';
  }
}

}  // namespace

double Json::as_double() const {
  if (is_large_integer()) return static_cast<double>(as_large_integer());
  if (is_integer()) return static_cast<double>(as_int64());
  return std::get<double>(value_);
}

const Json* Json::find(std::string_view key) const {
  for (const Member& member : as_object()) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

Json& Json::set(std::string key, Json value) {
  for (Member& member : as_object()) {
    if (member.first == key) {
      member.second = std::move(value);
      return *this;
    }
  }
  as_object().emplace_back(std::move(key), std::move(value));
  return *this;
}

Json& Json::push_back(Json value) {
  as_array().push_back(std::move(value));
  return *this;
}

Json parse_json(std::string_view text, const std::string& where, ExitCode code,
                const JsonLimits& limits) {
  // The lexer skips a byte order mark and takes a NUL for the end of the text.
  if (text.starts_with("\xEF\xBB\xBF")) {
    fail(code, where, "byte 0: byte order mark found, JSON wanted", "save it as plain UTF-8");
  }
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) {
    fail(code, where, fmt::format("byte {}: NUL found, JSON wanted", nul),
         "repair the file or fetch it again");
  }
  JsonBuilder builder(where, code, limits);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    fail(code, where, "not valid JSON", "repair the file or fetch it again");
  }
  return builder.take();
}

std::string in_quotes(const std::string& text) {
  std::string out = string_text(text);
  if (out.size() <= 80) return out;
  size_t end = 76;
  while (end > 0 && (static_cast<unsigned char>(out[end]) & 0xC0) == 0x80) --end;
  return out.substr(0, end) + "...\"";
}

std::string describe(const Json& json) {
  if (json.is_null()) return "null";
  if (json.is_bool()) return json.as_bool() ? "true" : "false";
  if (json.is_integer()) return fmt::format("integer {}", to_text(json));
  if (json.is_number()) return fmt::format("number {}", to_text(json));
  if (json.is_string()) return fmt::format("string {}", in_quotes(json.as_string()));
  if (json.is_array()) return fmt::format("array of {}", json.as_array().size());
  return fmt::format("object of {}", json.as_object().size());
}

std::string to_text(const Json& json) {
  std::string out;
  append_text(out, json, -1, 0);
  return out;
}

std::string to_pretty_text(const Json& json) {
  std::string out;
  append_text(out, json, 2, 0);
  return out;
}

JsonObjectReader::JsonObjectReader(const Json& object, std::string where, ExitCode code)
    : object_(&object), where_(std::move(where)), code_(code) {
  if (object.is_object()) return;
  fail(code_, where_, fmt::format("{} found, an object wanted", describe(object)),
       "repair the file or fetch it again");
}

void JsonObjectReader::fail_key(std::string_view key, std::string_view what,
                                std::string_view remedy) const {
  // The key may be the file's own: as in JSON, but for the quotes.
  const std::string shown = in_quotes(std::string(key));
  fail(code_, fmt::format("{}: {}", where_, shown.substr(1, shown.size() - 2)), what, remedy);
}

const Json* JsonObjectReader::find(std::string_view key) const {
  const Json* value = object_->find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const Json& JsonObjectReader::at(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) fail_key(key, "nothing found, a value wanted", "add this key");
  return *value;
}

int64_t JsonObjectReader::integer(std::string_view key, int64_t min, int64_t max) const {
  const Json& value = at(key);
  const bool fits = value.is_integer() && !value.is_large_integer();
  if (!fits || value.as_int64() < min || value.as_int64() > max) {
    fail_key(key,
             fmt::format("{} found, an integer from {} to {} wanted", describe(value), min, max),
             "correct this key");
  }
  return value.as_int64();
}

int64_t JsonObjectReader::integer_or(std::string_view key, int64_t min, int64_t max,
                                     int64_t fallback) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double JsonObjectReader::number(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_number()) {
    fail_key(key, fmt::format("{} found, a number wanted", describe(value)), "correct this key");
  }
  return value.as_double();
}

double JsonObjectReader::number_or(std::string_view key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool JsonObjectReader::boolean(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_bool()) {
    fail_key(key, fmt::format("{} found, true or false wanted", describe(value)),
             "correct this key");
  }
  return value.as_bool();
}

bool JsonObjectReader::boolean_or(std::string_view key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

const std::string& JsonObjectReader::string(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_string()) {
    fail_key(key, fmt::format("{} found, a string wanted", describe(value)), "correct this key");
  }
  return value.as_string();
}

std::string JsonObjectReader::string_or(std::string_view key, std::string fallback) const {
  return has(key) ? string(key) : fallback;
}

std::vector<std::string> JsonObjectReader::strings(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_array()) {
    fail_key(key, fmt::format("{} found, an array of strings wanted", describe(value)),
             "correct this key");
  }
  std::vector<std::string> out;
  for (const Json& element : value.as_array()) {
    if (!element.is_string()) {
      fail_key(key, fmt::format("element {} is {}, strings wanted", out.size(), describe(element)),
               "correct this key");
    }
    out.push_back(element.as_string());
  }
  return out;
}

JsonObjectReader JsonObjectReader::object(std::string_view key) const {
  return JsonObjectReader(at(key), fmt::format("{}: {}", where_, key), code_);
}

}  // namespace utrain
