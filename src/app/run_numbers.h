// What a checkpoint remembers of the run that wrote it. numbers: by key, every value that decides
// losses and weights, as resolved; they must be the same when a run goes on, or be allowed to
// change. fingerprint: what decides how sums round; where it is the same too, so are the bits.
#pragma once

#include <string>
#include <vector>

#include "app/report.h"
#include "io/json.h"
#include "train/job.h"

namespace utrain {

// Reads a sample of the weights: "model", "data" and "eval" are hashes of contents.
Json numbers_of(const Job& job, const Backend& backend);
Json fingerprint_of(const Job& job, const RunFacts& facts, const std::vector<Recompute>& policy);

struct ChangedNumber {
  std::string key, then, now;  // values as JSON
};
// In the order of `now`; what only one of them has is no change.
std::vector<ChangedNumber> changed_numbers(const Json& then, const Json& now);

}  // namespace utrain
