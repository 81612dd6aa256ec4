#include "app/run_totals.h"

#include <limits>

namespace utrain {

namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// Calls visit(name, member) for each member that checkpoints keep.
template <class Totals, class Visit>
void visit_kept(Totals& t, const Visit& visit) {
  visit("steps", t.steps);
  visit("skipped", t.skipped);
  visit("overflowed", t.overflowed);
  visit("tokens", t.tokens);
  visit("target_tokens", t.target_tokens);
  visit("step_seconds", t.step_seconds);
  visit("first_loss", t.first_loss);
  visit("last_loss", t.last_loss);
  visit("first_eval_loss", t.first_eval_loss);
  visit("last_eval_loss", t.last_eval_loss);
  visit("n_evaluations", t.n_evaluations);
  visit("model_flops", t.model_flops);
  visit("restarts", t.restarts);
  visit("n_checkpoints", t.n_checkpoints);
}

}  // namespace

Json to_json(const RunTotals& totals) {
  Json json = Json::object();
  visit_kept(totals, [&](const char* name, const auto& value) { json.set(name, value); });
  return json;
}

RunTotals totals_from_json(const JsonObjectReader& json) {
  RunTotals totals;
  struct Reader {
    const JsonObjectReader& json;
    void operator()(const char* name, int64_t& value) const {
      value = json.integer(name, 0, kMost);
    }
    void operator()(const char* name, double& value) const {  // null: it was not finite
      value = json.number_or(name, std::numeric_limits<double>::quiet_NaN());
    }
  };
  visit_kept(totals, Reader{json});
  return totals;
}

}  // namespace utrain
