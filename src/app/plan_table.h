// A plan for a person, as a table of the four strategies side by side, and for scripts as JSON.
#pragma once

#include <array>
#include <string>

#include "app/plan.h"

namespace utrain {

// What bytes travel over: one direction of a GPU's link, as data sheets say, not as measured.
struct Link {
  const char* name;
  double bytes_per_second;
};
inline constexpr std::array<Link, 3> kLinks = {
    {{"NVLink", 300e9}, {"400 Gbit/s network", 50e9}, {"200 Gbit/s network", 25e9}}};
inline constexpr size_t kUsualLink = 1;

std::string text_of_duration(double seconds);  // "3.4 ms", "1.25 s"

std::string plan_table(const Plan& plan);
std::string plan_json(const Plan& plan);

}  // namespace utrain
