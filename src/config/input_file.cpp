#include "config/input_file.h"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>

#include "config/assign.h"
#include "config/keys.h"
#include "config/nearest.h"
#include "config/print.h"
#include "core/error.h"

namespace utrain {
namespace {

// toml++ 3.3.0 bounds nested values but recurses (272 bytes of stack) for every part of a dotted
// key when it frees the table: 30 000 parts, 60 KB, overflow 8 MiB.
constexpr size_t kMaxDots = 8192;
constexpr size_t kMaxProblems = 100;
constexpr size_t kMaxShown = 80;  // bytes of user text in a message

// One line without control characters whatever it holds, cut where a character ends.
std::string shown(std::string_view text) {
  std::string line;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    const bool c1 = byte == 0xc2 && next >= 0x80 && next < 0xa0;  // U+0080 to U+009F
    line += c1 || byte < 0x20 || byte == 0x7f ? ' ' : text[i];
    i += c1;
  }
  if (line.size() <= kMaxShown) return line;
  size_t end = kMaxShown;
  while (end > 0 && (static_cast<unsigned char>(line[end]) & 0xc0) == 0x80) --end;
  return line.substr(0, end) + "...";
}

std::string shown_key(std::string_view key) {
  const bool bare = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-';
  });
  return bare ? shown(key) : quoted(shown(key));
}

// All faults of one input, sorted as a reader meets them: the file, the overrides, what is missing.
class Problems {
 public:
  struct Place {
    int part = 2;  // 0 file, 1 override, 2 nowhere
    size_t line = 0, column = 0;
    std::string text;  // what a message begins with
  };

  void add(const Place& place, const std::string& what) {
    lines_.push_back(
        {std::tuple(place.part, place.line, place.column), one_line(place.text + ": " + what)});
  }
  void throw_if_any() {
    if (lines_.empty()) return;
    std::stable_sort(lines_.begin(), lines_.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    const size_t more = lines_.size() > kMaxProblems ? lines_.size() - kMaxProblems : 0;
    std::string text;
    for (size_t i = 0; i < lines_.size() - more; ++i)
      text += (i == 0 ? "" : "\n") + lines_[i].second;
    if (more > 0) text += fmt::format("\ninput: {} more problems; correct those above first", more);
    throw Error(ExitCode::usage, text);
  }

 private:
  std::vector<std::pair<std::tuple<int, size_t, size_t>, std::string>> lines_;
};
using Place = Problems::Place;

Place place_in_file(const std::string& file, const toml::source_region& region) {
  const size_t line = region.begin.line, column = region.begin.column;
  return {0, line, column, fmt::format("{}:{}:{}", file, line, column)};
}

bool has_too_many_dots(const std::string& text) {
  return std::count(text.begin(), text.end(), '.') > static_cast<std::ptrdiff_t>(kMaxDots);
}

struct Setting {
  const Key* key;
  Place place;
  Value value;
};

// Arrays one level deep: no key holds more.
Value to_value(const toml::node& node, bool with_items = true) {
  if (const auto* x = node.as_boolean()) return {x->get(), x->get() ? "true" : "false"};
  if (const auto* x = node.as_integer()) return {x->get(), fmt::format("{}", x->get())};
  if (const auto* x = node.as_floating_point()) return {x->get(), number_text(x->get())};
  if (const auto* x = node.as_string()) return {x->get(), "the string " + quoted(shown(x->get()))};
  if (node.is_array_of_tables()) return {{}, "an array of tables"};
  if (const auto* array = node.as_array()) {
    Value value{{},
                array->empty() ? "an empty array" : fmt::format("an array of {}", array->size())};
    if (!with_items) return value;
    std::vector<Value> items;
    for (const toml::node& item : *array) items.push_back(to_value(item, false));
    value.data = std::move(items);
    return value;
  }
  return {{}, node.is_table() ? "a table" : "a date or time"};
}

std::string unknown_key(std::string_view section, std::string_view key) {
  const std::string meant = nearest_key(section, key);
  if (!meant.empty())
    return fmt::format("unknown key; did you mean \"{}\"? (utrain --help-config {})", meant,
                       meant.substr(0, meant.find('.')));
  std::vector<std::string_view> known;
  for (const Key& candidate : keys())
    if (candidate.section() == section) known.push_back(candidate.key());
  if (known.empty())
    return fmt::format("unknown key; the sections are {} (utrain --help-config)",
                       fmt::join(section_names(), ", "));
  return fmt::format("unknown key; [{}] has {} (utrain --help-config {})", section,
                     fmt::join(known, ", "), section);
}

std::string unknown_section(std::string_view name) {
  const std::string meant = nearest(name, section_names());
  if (!meant.empty())
    return fmt::format("unknown section; did you mean \"{}\"? (utrain --help-config {})", meant,
                       meant);
  return fmt::format("unknown section; the sections are {} (utrain --help-config)",
                     fmt::join(section_names(), ", "));
}

// What the file sets; unknown names go to problems.
std::vector<Setting> read_settings(const std::string& text, const std::string& file,
                                   Problems& problems) {
  std::vector<Setting> settings;
  toml::table root;
  try {
    root = toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    problems.add(place_in_file(file, error.source()),
                 fmt::format("{}; correct the TOML there", shown(error.description())));
    problems.throw_if_any();
  }
  const std::vector<std::string_view> sections = section_names();
  for (const auto& [section, node] : root) {
    Place place = place_in_file(file, section.source());
    place.text += ": " + shown_key(section.str());
    const bool known = std::count(sections.begin(), sections.end(), section.str()) != 0;
    const toml::table* table = node.as_table();
    if (table == nullptr && !known) {
      problems.add(place, node.is_array_of_tables() ? unknown_section(section.str())
                                                    : unknown_key("", section.str()));
    } else if (table == nullptr) {
      problems.add(place, fmt::format("found {}, wanted a section; write [{}] on a line of its own",
                                      to_value(node).found, section.str()));
    } else if (!known) {
      problems.add(place, unknown_section(section.str()));
    } else {
      for (const auto& [key, value] : *table) {
        const std::string name = fmt::format("{}.{}", section.str(), key.str());
        const Key* entry = find_key(name);
        place = place_in_file(file, entry ? value.source() : key.source());
        place.text += fmt::format(": {}.{}", section.str(), shown_key(key.str()));
        if (entry == nullptr)
          problems.add(place, unknown_key(section.str(), key.str()));
        else
          settings.push_back({entry, place, to_value(value)});
      }
    }
  }
  return settings;
}

// The value of `x = text`, nothing when that is not TOML.
std::optional<Value> parse_value(const std::string& text) {
  if (text.size() > kMaxInputBytes || has_too_many_dots(text)) return std::nullopt;
  if (text.find_first_of("\r\n") != text.npos) return std::nullopt;  // would set other keys
  try {
    const toml::table root = toml::parse("x = " + text);
    if (root.size() != 1) return std::nullopt;
    return to_value(root.begin()->second);
  } catch (const toml::parse_error&) {
    return std::nullopt;
  }
}

bool is_utf8(const std::string& text) {
  // A NUL byte cannot come over the command line; other control characters are the keys' business.
  std::string comment = "# " + text;
  for (char& c : comment)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  try {
    return toml::parse(comment).empty();
  } catch (const toml::parse_error&) {
    return false;
  }
}

Value text_value(const std::string& text) {
  return {text, "the string " + quoted(shown(text))};
}

// A shell takes the quotes away, so a list of words also comes as [a,b] or a,b.
Value names_value(std::string text, const Names& kind) {
  if (text == kind.all) return text_value(text);
  const bool brackets = text.size() >= 2 && text.front() == '[' && text.back() == ']';
  if (brackets) text = text.substr(1, text.size() - 2);
  std::vector<Value> items;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string word = text.substr(begin, end - begin);
    word.erase(0, word.find_first_not_of(' '));
    word.erase(word.find_last_not_of(' ') + 1);
    items.push_back(text_value(word));
    begin = end + 1;
  }
  const std::string found = fmt::format("an array of {}", items.size());
  return {std::move(items), found};
}

// Strings need no quotes on the command line; everything else is written as in TOML.
Value override_value(const Key& key, const std::string& text) {
  const bool is_text = std::holds_alternative<Text>(key.kind);
  const bool is_quoted = !text.empty() && (text[0] == '"' || text[0] == '\'');
  if (is_text && !is_quoted) return text_value(text);
  if (std::optional<Value> value = parse_value(text)) return *value;
  if (const Names* names = std::get_if<Names>(&key.kind)) return names_value(text, *names);
  if (std::holds_alternative<Reals>(key.kind))
    if (std::optional<Value> value = parse_value("[" + text + "]")) return *value;
  return text_value(text);
}

std::vector<Setting> read_overrides(const std::vector<Override>& overrides, Problems& problems) {
  std::vector<Setting> settings;
  for (size_t i = 0; i < overrides.size(); ++i) {
    const auto& [name, value] = overrides[i];
    const Place place{1, i, 0, fmt::format("--{}={}", shown(name), shown(value))};
    const Key* key = find_key(name);
    const bool twice = std::any_of(settings.begin(), settings.end(),
                                   [&](const Setting& other) { return other.key == key; });
    if (!is_utf8(name) || !is_utf8(value)) {
      problems.add({1, i, 0, fmt::format("override {}", i + 1)},
                   "found bytes that are not UTF-8; write it in UTF-8");
    } else if (key == nullptr) {
      const size_t dot = std::min(name.find('.'), name.size());
      problems.add(place,
                   unknown_key(name.substr(0, dot), name.substr(dot == name.size() ? 0 : dot + 1)));
    } else if (twice) {
      problems.add(place, "found the override a second time, wanted it once; remove one");
    } else {
      settings.push_back({key, place, override_value(*key, value)});
    }
  }
  return settings;
}

// "owner/model", as Hugging Face names a model; nothing is downloaded here.
bool is_hub_name(const std::string& text) {
  const size_t slash = text.find('/');
  return slash != text.npos && slash == text.rfind('/') && slash > 0 && slash + 1 < text.size() &&
         text[0] != '.' && text[0] != '~';
}

// Checks of what came out, after all that was written is assigned.
void check_result(const Config& config, const std::string& file,
                  const std::map<std::string_view, Place>& places, Problems& problems) {
  for (const Key& key : keys()) {
    const auto place = places.find(key.name);
    if (place == places.end()) {
      if (key.required)
        problems.add({.text = fmt::format("{}: {}", file, key.name)},
                     fmt::format("missing, but required ({}); set it under [{}] or with --{}=...",
                                 key.doc, key.section(), key.name));
      continue;
    }
    const std::string not_built = check_built(key, config);
    if (!not_built.empty()) problems.add(place->second, not_built);
    const Text* path = key.must_exist ? std::get_if<Text>(&key.kind) : nullptr;
    if (path == nullptr) continue;
    Config copy = config;
    const std::string& name = path->at(copy);
    struct stat status;
    if (!name.empty() && stat(name.c_str(), &status) != 0) {
      const bool missing = errno == ENOENT || errno == ENOTDIR;
      const std::string what =
          missing ? "does not exist" : fmt::format("cannot be used ({})", std::strerror(errno));
      const bool hub = missing && key.name == "model.path" && is_hub_name(name);
      problems.add(
          place->second,
          fmt::format(
              "{} {}; give an existing path, absolute or from the working directory{}",
              quoted(shown(name)), what,
              hub ? "; a model of the hub: download it first (hf download ID --local-dir DIR) "
                    "and give the directory"
                  : ""));
    }
  }
  for (const Exclusive& pair : exclusive_keys()) {
    const auto first = places.find(pair.first), second = places.find(pair.second);
    if (first != places.end() && second != places.end())
      problems.add(second->second,
                   fmt::format("found {} as well, wanted {} one of the two; remove one", pair.first,
                               pair.required ? "exactly" : "at most"));
    if (pair.required && first == places.end() && second == places.end())
      problems.add({.text = fmt::format("{}: {}", file, pair.first)},
                   fmt::format("found neither this nor {}, wanted exactly one of the two; set one",
                               pair.second));
  }
}

}  // namespace

Config parse_config(const std::string& text, const std::string& file,
                    const std::vector<Override>& overrides) {
  if (text.size() > kMaxInputBytes)
    fail(ExitCode::usage, file, "is larger than 64 KiB", "make it smaller");
  if (has_too_many_dots(text))
    fail(ExitCode::usage, file,
         fmt::format("holds more than {} dots, wanted an input.toml", kMaxDots),
         "write keys under their [section]");
  Problems problems;
  const std::vector<Setting> from_overrides = read_overrides(overrides, problems);
  const std::vector<Setting> from_file = read_settings(text, file, problems);

  Config config;
  std::map<std::string_view, Place> places;
  // The override comes second and wins; what the file says must be sound all the same.
  for (const std::vector<Setting>* settings : {&from_file, &from_overrides}) {
    for (const Setting& setting : *settings) {
      const std::string problem = assign(*setting.key, setting.value, config);
      if (!problem.empty()) problems.add(setting.place, problem);
      places[setting.key->name] = setting.place;
      config.given.insert(std::string(setting.key->name));
    }
  }
  check_result(config, file, places, problems);
  problems.throw_if_any();
  return config;
}

Config read_config(const std::string& file, const std::vector<Override>& overrides) {
  return parse_config(read_input_file(file), file, overrides);
}

}  // namespace utrain
