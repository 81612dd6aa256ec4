// The writing half of io/safetensors.h: every offset is known from the declarations, so data goes
// to its final place as it comes and nothing is held in memory.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "io/json.h"
#include "io/safetensors.h"

namespace utrain {

SafetensorsWriter::SafetensorsWriter(const std::string& path, FileSign sign)
    : file_(path, std::move(sign)) {}

void SafetensorsWriter::declare(const std::string& name, FileDType dtype,
                                const std::vector<int64_t>& shape) {
  ASSERT(!header_written_ && name != "__metadata__");
  Entry entry;
  entry.dtype = dtype;
  entry.shape = shape;
  int64_t bits = bits_of(dtype);
  for (const int64_t size : shape) {
    ASSERT(size >= 0 && !__builtin_mul_overflow(bits, size, &bits));
  }
  ASSERT(bits % 8 == 0);
  entry.bytes = bits / 8;
  ASSERT(entries_.emplace(name, std::move(entry)).second);
}

void SafetensorsWriter::write_header() {
  // Largest dtype first keeps every tensor aligned to its elements.
  std::vector<std::map<std::string, Entry>::iterator> order;
  for (auto it = entries_.begin(); it != entries_.end(); ++it) order.push_back(it);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return bits_of(a->second.dtype) > bits_of(b->second.dtype);
  });

  Json header = Json::object();
  Json::Object& members = header.as_object();
  members.emplace_back("__metadata__", Json::object().set("format", "pt"));
  int64_t end = 0;
  for (const auto& it : order) {
    Entry& entry = it->second;
    entry.offset = end;
    end += entry.bytes;
    Json shape = Json::array();
    for (const int64_t size : entry.shape) shape.push_back(size);
    Json tensor = Json::object();
    tensor.set("dtype", name_of(entry.dtype)).set("shape", std::move(shape));
    tensor.set("data_offsets", Json::array().push_back(entry.offset).push_back(end));
    members.emplace_back(it->first, std::move(tensor));
  }
  std::string text = to_text(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');

  const uint64_t n = text.size();
  file_.write(&n, 8);
  file_.write(text.data(), static_cast<int64_t>(n));
  for (auto& entry : entries_) entry.second.offset += 8 + static_cast<int64_t>(n);
  header_written_ = true;
}

void SafetensorsWriter::write(const std::string& name, const void* data, int64_t bytes) {
  if (!header_written_) write_header();
  const auto found = entries_.find(name);
  ASSERT(found != entries_.end());
  Entry& entry = found->second;
  ASSERT(bytes >= 0 && bytes <= entry.bytes - entry.written);
  file_.write_at(entry.offset + entry.written, data, bytes);
  entry.written += bytes;
}

void SafetensorsWriter::commit() {
  if (!header_written_) write_header();
  for (const auto& entry : entries_) ASSERT(entry.second.written == entry.second.bytes);
  file_.commit();
}

}  // namespace utrain
