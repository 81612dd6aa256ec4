// THE table of keys: one entry per key of input.toml. Parsing, checks, --help-config,
// --print-config and the listing in summary.json are made from it alone; a new key is a member of
// Config and an entry in keys.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/config.h"

namespace utrain {

// What a key may hold and where it lives. `at` gives the member.
struct Integer {
  int64_t& (*at)(Config&);
  int64_t min, max;
};
struct Interval {  // finite numbers; an open end is not part of it
  double min = 0.0;
  bool open_min = false;
  double max = 0.0;  // open; 0 = none
  bool contains(double x) const;
};
struct Real {
  double& (*at)(Config&);
  Interval interval;
};
struct Reals {
  std::vector<double>& (*at)(Config&);
  size_t count;
  Interval interval;
};
struct Boolean {
  bool& (*at)(Config&);
};
struct Text {
  std::string& (*at)(Config&);
  std::vector<std::string_view> allowed;  // none: any text
};
struct Names {  // some of `allowed`, or the word `all` for all of them
  std::vector<std::string>& (*at)(Config&);
  std::vector<std::string_view> allowed;
  std::string_view all;
  bool may_be_empty = false;
};
using Kind = std::variant<Integer, Real, Reals, Boolean, Text, Names>;

// Values of the contract that this version cannot run yet: everything but `built` (none: but the
// default).
struct NotBuilt {
  std::vector<std::string_view> built;
  std::string_view remedy;  // "" = the key is built completely
};

struct Key {
  std::string_view name;  // "section.key"
  Kind kind;
  std::string_view doc;  // one line, with the unit
  bool required = false;
  bool must_exist = false;     // a path that must exist when it is set
  bool from_adapter = false;   // left unset, it comes from the adapter in lora.init_from
  std::string_view also = "";  // names that other tools give it, separated by spaces
  NotBuilt not_built = {};

  std::string_view section() const { return name.substr(0, name.find('.')); }
  std::string_view key() const { return name.substr(name.find('.') + 1); }
};

const std::vector<Key>& keys();
const Key* find_key(std::string_view name);  // nullptr = unknown

// Sections in the order of the table.
std::vector<std::string_view> section_names();

// Of two such keys at most one is set (exactly one where `required`); the one unset has no value.
struct Exclusive {
  std::string_view first, second;
  bool required;
};
const std::vector<Exclusive>& exclusive_keys();

// The other key of an exclusive pair, "" for all other keys.
std::string_view exclusive_with(std::string_view name);

// The known key that an unknown one may have meant, also in another section: "lora.r" for ("train",
// "r"); "" = none.
std::string nearest_key(std::string_view section, std::string_view key);

}  // namespace utrain
