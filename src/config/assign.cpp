#include "config/assign.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "config/nearest.h"
#include "config/print.h"

namespace utrain {
namespace {

using Problem = std::string;

std::string help_hint(const Key& key) {
  return fmt::format("(utrain --help-config {})", key.section());
}

Problem not_wanted(const Key& key, const std::string& found) {
  return fmt::format("found {}, wanted {}; change it {}", found, wanted(key), help_hint(key));
}

Problem unknown_word(const Key& key, const Value& value, const std::string& word,
                     const std::vector<std::string_view>& allowed) {
  const std::string meant = nearest(word, allowed);
  if (meant.empty()) return not_wanted(key, value.found);
  return fmt::format("found {}, wanted {}; did you mean {}? {}", value.found, wanted(key),
                     quoted(meant), help_hint(key));
}

bool contains(const std::vector<std::string_view>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// Whole numbers are numbers too; 8.0 for an integer is not, it hides a mistake.
std::optional<double> number(const Value& value) {
  if (const auto* integer = std::get_if<int64_t>(&value.data)) return static_cast<double>(*integer);
  if (const auto* real = std::get_if<double>(&value.data)) return *real;
  return std::nullopt;
}

Problem assign_kind(const Key& key, const Integer& kind, const Value& value, Config& config) {
  const auto* integer = std::get_if<int64_t>(&value.data);
  if (integer == nullptr || *integer < kind.min || *integer > kind.max)
    return not_wanted(key, value.found);
  kind.at(config) = *integer;
  return "";
}

Problem assign_kind(const Key& key, const Real& kind, const Value& value, Config& config) {
  const std::optional<double> x = number(value);
  if (!x || !kind.interval.contains(*x)) return not_wanted(key, value.found);
  kind.at(config) = *x;
  return "";
}

Problem assign_kind(const Key& key, const Reals& kind, const Value& value, Config& config) {
  const auto* items = std::get_if<std::vector<Value>>(&value.data);
  if (items == nullptr || items->size() != kind.count) return not_wanted(key, value.found);
  std::vector<double> numbers;
  for (const Value& item : *items) {
    const std::optional<double> x = number(item);
    if (!x || !kind.interval.contains(*x)) return not_wanted(key, item.found + " in the array");
    numbers.push_back(*x);
  }
  kind.at(config) = numbers;
  return "";
}

Problem assign_kind(const Key& key, const Boolean& kind, const Value& value, Config& config) {
  const auto* boolean = std::get_if<bool>(&value.data);
  if (boolean == nullptr) return not_wanted(key, value.found);
  kind.at(config) = *boolean;
  return "";
}

Problem assign_kind(const Key& key, const Text& kind, const Value& value, Config& config) {
  const auto* text = std::get_if<std::string>(&value.data);
  if (text == nullptr) return not_wanted(key, value.found);
  if (!kind.allowed.empty() && !contains(kind.allowed, *text))
    return unknown_word(key, value, *text, kind.allowed);
  Config defaults;
  if (text->empty() && (key.required || !kind.at(defaults).empty()))
    return not_wanted(key, "the empty string");
  // A path with a NUL or a newline is never meant, and C cuts it short.
  if (std::any_of(text->begin(), text->end(),
                  [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    return not_wanted(key, value.found + " with control characters");
  kind.at(config) = *text;
  return "";
}

Problem assign_kind(const Key& key, const Names& kind, const Value& value, Config& config) {
  if (const auto* word = std::get_if<std::string>(&value.data)) {
    if (*word != kind.all) return unknown_word(key, value, *word, {kind.all});
    kind.at(config).assign(kind.allowed.begin(), kind.allowed.end());
    return "";
  }
  const auto* items = std::get_if<std::vector<Value>>(&value.data);
  if (items == nullptr || (items->empty() && !kind.may_be_empty))
    return not_wanted(key, value.found);
  std::vector<std::string> names;
  for (const Value& item : *items) {
    const auto* name = std::get_if<std::string>(&item.data);
    if (name == nullptr) return not_wanted(key, item.found + " in the array");
    if (!contains(kind.allowed, *name)) return unknown_word(key, item, *name, kind.allowed);
    if (std::find(names.begin(), names.end(), *name) != names.end())
      return not_wanted(key, item.found + " twice");
    names.push_back(*name);
  }
  kind.at(config) = names;
  return "";
}

}  // namespace

std::string assign(const Key& key, const Value& value, Config& config) {
  return std::visit([&](const auto& kind) { return assign_kind(key, kind, value, config); },
                    key.kind);
}

std::string check_built(const Key& key, const Config& config) {
  if (key.not_built.remedy.empty()) return "";
  const std::string value = value_text(key, config);
  if (value == value_text(key, Config{})) return "";
  for (std::string_view built : key.not_built.built)
    if (value == quoted(built)) return "";
  return fmt::format("{} is not in this version; {}", value, key.not_built.remedy);
}

}  // namespace utrain
