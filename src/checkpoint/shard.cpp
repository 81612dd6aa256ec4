#include "checkpoint/shard.h"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/files.h"
#include "io/hdf5_writer.h"

namespace utrain {

namespace {

Hdf5Faults faults(ExitCode code) {
  return {code, code,
          code == ExitCode::io ? "the file system may be faulty: run again elsewhere"
                               : "this checkpoint is damaged: use another one, or start without "
                                 "(checkpoint.resume)"};
}

Slice common(const Slice& a, const Slice& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::min(a.begin + a.n_elem, b.begin + b.n_elem) - begin};
}

}  // namespace

FileFacts write_shard(const std::string& temp, int rank, int ranks, const ShardState& state,
                      const FileSign& sign) {
  ASSERT(rank >= 0 && rank < ranks);
  std::vector<int64_t> slices;
  int64_t end = 0;
  for (const Slice& slice : state.slices) {
    ASSERT(slice.begin >= end && slice.n_elem >= 0);
    end = slice.begin + slice.n_elem;
    slices.insert(slices.end(), {slice.begin, slice.n_elem});
  }
  const std::string name = shard_name(rank, ranks);
  const int64_t n_elem = state.n_elem();
  Hdf5Writer file(temp + "/" + name, sign);
  file.attribute("format_version", kCheckpointFormat);
  file.attribute("rank", rank);
  file.attribute("ranks", ranks);
  file.write("slices", slices.data(), static_cast<int64_t>(state.slices.size()), 2);
  const std::array<const float*, kArrayNames.size()> values = {state.parameters, state.m, state.v};
  for (size_t i = 0; i < values.size(); ++i) file.write(kArrayNames[i], values[i], n_elem);
  file.close();
  return read_facts(temp, name, ExitCode::io, sign);
}

ShardReader::ShardReader(const std::string& dir, int rank, int ranks,
                         const std::vector<Slice>& slices, ExitCode code)
    : slices_(slices), file_(dir + "/" + shard_name(rank, ranks), faults(code)) {
  const auto expect = [this](const std::string& attribute, int64_t wanted) {
    const int64_t found = file_.integer_attribute(attribute);
    if (found != wanted)
      file_.refuse("attribute " + attribute, fmt::format("is {}, {} wanted", found, wanted), "");
  };
  expect("format_version", kCheckpointFormat);
  expect("rank", rank);
  expect("ranks", ranks);

  std::vector<int64_t> wanted;
  int64_t n_elem = 0;
  for (const Slice& slice : slices) {
    wanted.insert(wanted.end(), {slice.begin, slice.n_elem});
    n_elem += slice.n_elem;
  }
  const int64_t rows = file_.integer_rows("slices", 2);
  if (rows != static_cast<int64_t>(slices.size()))
    file_.refuse("/slices", fmt::format("has {} rows, {} wanted", rows, slices.size()), "");
  std::vector<int64_t> found(wanted.size());
  if (rows > 0) file_.read_integers("slices", found.data());
  if (found != wanted) file_.refuse("/slices", "are others than the manifest's", "");
  for (const char* array : kArrayNames) {
    const int64_t n = file_.float_count(array);
    if (n != n_elem)
      file_.refuse(fmt::format("/{}", array), fmt::format("has {} values, {} wanted", n, n_elem),
                   "");
  }
}

bool ShardReader::overlap(const std::vector<Slice>& slices, const Slice& wanted) {
  return std::any_of(slices.begin(), slices.end(),
                     [&](const Slice& slice) { return common(slice, wanted).n_elem > 0; });
}

void ShardReader::read(const std::string& array, const Slice& wanted, float* out) const {
  int64_t in_shard = 0;
  for (const Slice& slice : slices_) {
    const Slice part = common(slice, wanted);
    if (part.n_elem > 0)
      file_.read_floats(array, in_shard + part.begin - slice.begin, part.n_elem,
                        out + part.begin - wanted.begin);
    in_shard += slice.n_elem;
  }
}

}  // namespace utrain
