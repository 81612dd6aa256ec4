#include "checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "checkpoint/files.h"

namespace utrain {

namespace {

constexpr int64_t kMax = int64_t{1} << 52;  // of steps, elements, bytes
constexpr int64_t kMaxRanks = int64_t{1} << 20;

bool is_hash(const std::string& text) {
  return text.size() == 32 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

const Json::Array& array_at(const JsonObjectReader& object, const char* key) {
  const Json& json = object.at(key);
  if (!json.is_array()) object.fail_key(key, describe(json), "an array wanted");
  return json.as_array();
}

// [begin, n_elem, begin, n_elem, ...]
std::vector<Slice> slices_from(const Json& json, const std::string& where) {
  const auto is_size = [](const Json& x) {
    return x.is_integer() && !x.is_large_integer() && x.as_int64() >= 0 && x.as_int64() <= kMax;
  };
  if (!json.is_array() || json.as_array().size() % 2 != 0 ||
      !std::all_of(json.as_array().begin(), json.as_array().end(), is_size))
    fail_checkpoint(where, "slices: " + describe(json) + " found, begin and size of each wanted");
  std::vector<Slice> slices;
  const Json::Array& numbers = json.as_array();
  for (size_t i = 0; i < numbers.size(); i += 2)
    slices.push_back({numbers[i].as_int64(), numbers[i + 1].as_int64()});
  return slices;
}

}  // namespace

Json FileFacts::to_json() const {
  return Json::object().set("name", name).set("bytes", bytes).set("xxh3", xxh3);
}

FileFacts FileFacts::from_json(const Json& json, const std::string& where) {
  const JsonObjectReader object(json, where, ExitCode::no_checkpoint);
  FileFacts facts{object.string("name"), object.integer("bytes", 0, kMax), object.string("xxh3")};
  if (!is_checkpoint_file_name(facts.name))
    object.fail_key("name", "no plain file name", "only letters, digits and ._- wanted");
  if (!is_hash(facts.xxh3)) object.fail_key("xxh3", "no hash", "32 hexadecimal digits wanted");
  return facts;
}

std::string fault_of_slices(const std::vector<std::vector<Slice>>& slices, int64_t n_elem) {
  std::vector<Slice> all;
  for (const std::vector<Slice>& of_rank : slices) {
    int64_t end = 0;
    for (const Slice& slice : of_rank) {
      if (slice.begin < end || slice.n_elem < 0 || slice.n_elem > n_elem)
        return fmt::format("slice {} + {} is out of order", slice.begin, slice.n_elem);
      end = slice.begin + slice.n_elem;
      if (slice.n_elem > 0) all.push_back(slice);
    }
  }
  std::sort(all.begin(), all.end(),
            [](const Slice& a, const Slice& b) { return a.begin < b.begin; });
  int64_t end = 0;
  for (const Slice& slice : all) {
    if (slice.begin != end)
      return fmt::format("elements {} to {} are held {}", std::min(end, slice.begin),
                         std::max(end, slice.begin), slice.begin < end ? "twice" : "by no rank");
    end += slice.n_elem;
  }
  if (end == n_elem) return "";
  return fmt::format("the slices end at element {} of {}", end, n_elem);
}

const FileFacts& Manifest::state() const {
  return *std::find_if(files.begin(), files.end(),
                       [](const FileFacts& f) { return f.name == "state.json"; });
}

std::string to_text(const Manifest& m) {
  Json slices = Json::array();
  for (const std::vector<Slice>& of_rank : m.slices) {
    Json numbers = Json::array();
    for (const Slice& slice : of_rank) numbers.push_back(slice.begin).push_back(slice.n_elem);
    slices.push_back(std::move(numbers));
  }
  Json files = Json::array();
  for (const FileFacts& file : m.files) files.push_back(file.to_json());
  Json json = Json::object();
  json.set("format_version", kCheckpointFormat).set("step", m.step).set("ranks", m.ranks());
  json.set("n_elem", m.n_elem).set("files", std::move(files)).set("slices", std::move(slices));
  return to_text(json) + "\n";
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  const JsonLimits limits = {.values = 1 << 22};  // slices of many ranks
  const Json json = parse_json(text, where, ExitCode::no_checkpoint, limits);
  const JsonObjectReader object(json, where, ExitCode::no_checkpoint);
  const int64_t version = object.integer("format_version", 1, kMax);
  if (version > kCheckpointFormat)
    fail(ExitCode::no_checkpoint, where,
         fmt::format("format_version {} found, at most {} is read", version, kCheckpointFormat),
         "a newer utrain wrote it: use that one");
  Manifest m;
  m.step = object.integer("step", 0, kMax);
  m.n_elem = object.integer("n_elem", 0, kMax);
  const int64_t ranks = object.integer("ranks", 1, kMaxRanks);
  for (const Json& of_rank : array_at(object, "slices"))
    m.slices.push_back(slices_from(of_rank, where));
  if (m.ranks() != ranks)
    fail_checkpoint(where, fmt::format("slices of {} rank{}, {} wanted", m.ranks(),
                                       m.ranks() == 1 ? "" : "s", ranks));
  if (const std::string fault = fault_of_slices(m.slices, m.n_elem); !fault.empty())
    fail_checkpoint(where, fault);

  std::set<std::string> names;
  for (const Json& file : array_at(object, "files")) {
    m.files.push_back(FileFacts::from_json(file, where));
    if (!names.insert(m.files.back().name).second)
      fail_checkpoint(where, m.files.back().name + " is there twice");
  }
  for (const char* name : {"index.h5", "state.json"})
    if (!names.contains(name)) fail_checkpoint(where, std::string(name) + " is missing");
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const size_t i = static_cast<size_t>(rank);
    const std::string name = shard_name(rank, ranks);
    if (i >= m.files.size() || m.files[i].name != name)
      fail_checkpoint(where, fmt::format("{} is missing, or not in its place", name));
    int64_t n_elem = 0;
    for (const Slice& slice : m.slices[i]) n_elem += slice.n_elem;
    constexpr auto kBytes = static_cast<int64_t>(kArrayNames.size() * sizeof(float));
    if (m.files[i].bytes / kBytes < n_elem)
      fail_checkpoint(where, fmt::format("{} has {} bytes, too few for 3 x {} float32", name,
                                         m.files[i].bytes, n_elem));
  }
  return m;
}

}  // namespace utrain
