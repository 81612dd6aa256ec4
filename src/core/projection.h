// The seven projections of a block and the four groups that hold them: projections of one group
// share their input and are one frozen matrix, rows in this order.
#pragma once

#include <array>
#include <string_view>

namespace utrain {

enum class Projection { q, k, v, o, gate, up, down };
inline constexpr std::array<Projection, 7> kProjections = {
    Projection::q,    Projection::k,  Projection::v,   Projection::o,
    Projection::gate, Projection::up, Projection::down};

enum class Group { qkv, o, gate_up, down };  // from the input of a block to its output
inline constexpr std::array<Group, 4> kGroups = {Group::qkv, Group::o, Group::gate_up, Group::down};

constexpr Group group_of(Projection p) {
  switch (p) {
    case Projection::q:
    case Projection::k:
    case Projection::v: return Group::qkv;
    case Projection::o: return Group::o;
    case Projection::gate:
    case Projection::up: return Group::gate_up;
    case Projection::down: return Group::down;
  }
  return Group::qkv;
}

// Hugging Face's name inside a layer, "self_attn.q_proj", and the short one, "q_proj".
constexpr std::string_view module_of(Projection p) {
  switch (p) {
    case Projection::q: return "self_attn.q_proj";
    case Projection::k: return "self_attn.k_proj";
    case Projection::v: return "self_attn.v_proj";
    case Projection::o: return "self_attn.o_proj";
    case Projection::gate: return "mlp.gate_proj";
    case Projection::up: return "mlp.up_proj";
    case Projection::down: return "mlp.down_proj";
  }
  return "?";
}
constexpr std::string_view name_of(Projection p) {
  const std::string_view module = module_of(p);
  return module.substr(module.find('.') + 1);
}

inline constexpr std::array<std::string_view, 7> kProjectionNames = [] {
  std::array<std::string_view, 7> names;
  for (size_t i = 0; i < names.size(); ++i) names[i] = name_of(kProjections[i]);
  return names;
}();

}  // namespace utrain
