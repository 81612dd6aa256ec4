#include "config/print.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <limits>

#include "config/nearest.h"
#include "core/error.h"

namespace utrain {
namespace {

std::string interval_text(const Interval& interval) {
  std::string text = fmt::format("{} {}", interval.open_min ? ">" : ">=", interval.min);
  if (interval.max != 0.0) text += fmt::format(" and < {}", interval.max);
  return text;
}

std::string quoted_list(const std::vector<std::string_view>& words) {
  std::vector<std::string> list;
  for (std::string_view word : words) list.push_back(quoted(word));
  return fmt::format("{}", fmt::join(list, ", "));
}

bool is_empty_text(const Key& key, const Config& config) {
  return std::holds_alternative<Text>(key.kind) && value_text(key, config) == "\"\"";
}

// Exclusive keys have no value of their own while the other one is set, or while they are 0.
bool is_unset(const Key& key, const Config& config) {
  const std::string_view other = exclusive_with(key.name);
  if (other.empty()) return false;
  const char* unset = std::holds_alternative<Real>(key.kind) ? "0.0" : "0";
  if (value_text(key, config) == unset) return true;
  return config.is_given(std::string(other)) && !config.is_given(std::string(key.name));
}

// Why the key may not be written into a file that reads back to this Config; "" = it may.
std::string why_comment(const Key& key, const Config& config) {
  if (is_unset(key, config)) return fmt::format("unset, see {}", exclusive_with(key.name));
  if (key.required && is_empty_text(key, config)) return "required";
  if (key.from_adapter && !config.lora.init_from.empty() && !config.is_given(std::string(key.name)))
    return "from the adapter in init_from";
  return "";
}

}  // namespace

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (byte < 0x20 || byte == 0x7f)
      out += fmt::format("\\u{:04x}", byte);
    else
      out += c;
  }
  return out + '"';
}

std::string number_text(double x) {
  const std::string text = fmt::format("{}", x);
  return text.find_first_not_of("-0123456789") == text.npos ? text + ".0" : text;
}

std::string value_text(const Key& key, const Config& config) {
  Config copy = config;  // the accessors give members to write to
  struct Writer {
    Config& config;
    std::string operator()(const Integer& kind) { return fmt::format("{}", kind.at(config)); }
    std::string operator()(const Real& kind) { return number_text(kind.at(config)); }
    std::string operator()(const Reals& kind) {
      std::vector<std::string> items;
      for (double x : kind.at(config)) items.push_back(number_text(x));
      return fmt::format("[{}]", fmt::join(items, ", "));
    }
    std::string operator()(const Boolean& kind) { return kind.at(config) ? "true" : "false"; }
    std::string operator()(const Text& kind) { return quoted(kind.at(config)); }
    std::string operator()(const Names& kind) {
      const std::vector<std::string>& names = kind.at(config);
      return fmt::format("[{}]", quoted_list({names.begin(), names.end()}));
    }
  };
  return std::visit(Writer{copy}, key.kind);
}

std::string wanted(const Key& key) {
  struct Writer {
    bool may_be_empty;
    std::string operator()(const Integer& kind) {
      if (kind.max == std::numeric_limits<int64_t>::max())
        return fmt::format("an integer >= {}", kind.min);
      return fmt::format("an integer from {} to {}", kind.min, kind.max);
    }
    std::string operator()(const Real& kind) {
      return fmt::format("a finite number {}", interval_text(kind.interval));
    }
    std::string operator()(const Reals& kind) {
      return fmt::format("an array of {} finite numbers {}", kind.count,
                         interval_text(kind.interval));
    }
    std::string operator()(const Boolean&) { return "true or false"; }
    std::string operator()(const Text& kind) {
      if (kind.allowed.empty()) return may_be_empty ? "a string" : "a string that is not empty";
      return "one of " + quoted_list(kind.allowed);
    }
    std::string operator()(const Names& kind) {
      return fmt::format("{} or an array{} of different names out of {}", quoted(kind.all),
                         kind.may_be_empty ? "" : ", not empty,", quoted_list(kind.allowed));
    }
  };
  const bool may_be_empty = !key.required && is_empty_text(key, Config{});
  return std::visit(Writer{may_be_empty}, key.kind);
}

std::string print_config(const Config& config) {
  std::string out = "# Input of utrain; all keys: utrain --help-config\n";
  std::string_view section;
  for (const Key& key : keys()) {
    if (key.section() != section) {
      section = key.section();
      out += fmt::format("\n[{}]\n", section);
    }
    const std::string why = why_comment(key, config);
    const std::string line =
        fmt::format("{}{} = {}", why.empty() ? "" : "# ", key.key(), value_text(key, config));
    out += fmt::format("{:<35} # {}{}\n", line, key.doc, why.empty() ? "" : " (" + why + ")");
  }
  return out;
}

std::string help_config(const std::string& section) {
  std::string out;
  std::string_view last;
  for (const Key& key : keys()) {
    if (!section.empty() && key.section() != section) continue;
    if (key.section() != last) {
      last = key.section();
      out += fmt::format("{}[{}]\n", out.empty() ? "" : "\n", last);
    }
    std::string value = value_text(key, Config{});
    if (is_unset(key, Config{})) value = "(unset)";
    if (key.required) value = "(required)";
    out += fmt::format("  {}.{} = {}\n      {}\n      {}\n", key.section(), key.key(), value,
                       key.doc, wanted(key));
    if (key.not_built.remedy.empty()) continue;
    const std::string built = quoted_list(key.not_built.built);
    out += fmt::format("      in this version only {}\n", built.empty() ? value : built);
  }
  if (!out.empty()) return out;

  const std::vector<std::string_view> sections = section_names();
  const std::string meant = nearest(section, sections);
  fail(ExitCode::usage, "--help-config",
       fmt::format("there is no section {}", quoted(section.substr(0, 60))),
       meant.empty() ? fmt::format("the sections are {}", fmt::join(sections, ", "))
                     : fmt::format("did you mean {}?", quoted(meant)));
}

std::vector<std::pair<std::string, std::string>> config_values(const Config& config) {
  std::vector<std::pair<std::string, std::string>> values;
  for (const Key& key : keys())
    values.emplace_back(key.name, is_unset(key, config) ? "null" : value_text(key, config));
  return values;
}

}  // namespace utrain
