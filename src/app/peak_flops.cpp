#include "app/peak_flops.h"

#include <algorithm>
#include <sstream>
#include <vector>

namespace utrain {

namespace {

struct Peak {
  std::vector<std::string> words;  // all of them are in the name
  double half, single;             // TFLOP/s of bfloat16 and float16, and of float32
};

// NVIDIA's data sheets, where sparse figures stand halved: A100 (2022), A30 (2022), A40 (2022),
// A10 (2022), L4, L40, L40S (2023), H100 (2024), H200 (2024), GH200 (2024), HGX B200 and
// GB200 NVL72 (2024), H20 (2023); H800 as H100. The first match counts.
const std::vector<Peak>& known_peaks() {
  static const std::vector<Peak> peaks = {
      {{"A100"}, 312.0, 19.5},        {{"A800"}, 312.0, 19.5},  {{"A30"}, 165.0, 10.3},
      {{"A40"}, 149.7, 37.4},         {{"A10"}, 125.0, 31.2},   {{"L4"}, 121.0, 30.3},
      {{"L40"}, 181.0, 90.5},         {{"L40S"}, 362.0, 91.6},  {{"H100", "PCIe"}, 756.0, 51.0},
      {{"H100", "NVL"}, 835.0, 60.0}, {{"H100"}, 989.0, 67.0},  {{"H800", "PCIe"}, 756.0, 51.0},
      {{"H800"}, 989.0, 67.0},        {{"H20"}, 148.0, 44.0},   {{"H200", "NVL"}, 835.0, 60.0},
      {{"H200"}, 989.0, 67.0},        {{"GH200"}, 989.0, 67.0}, {{"B200"}, 2250.0, 75.0},
      {{"GB200"}, 2500.0, 80.0},
  };
  return peaks;
}

// "NVIDIA A100-SXM4-80GB" -> NVIDIA, A100, SXM4, 80GB
std::vector<std::string> words_of(std::string name) {
  std::replace(name.begin(), name.end(), '-', ' ');
  std::istringstream stream(name);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

}  // namespace

double peak_flops(const std::string& gpu_name, DType dtype) {
  const bool half = dtype == DType::bf16 || dtype == DType::f16;
  if (!half && dtype != DType::f32) return 0.0;
  const std::vector<std::string> words = words_of(gpu_name);
  const auto has = [&](const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  };
  if (has("MIG")) return 0.0;
  for (const Peak& peak : known_peaks()) {
    if (std::all_of(peak.words.begin(), peak.words.end(), has)) {
      return 1e12 * (half ? peak.half : peak.single);
    }
  }
  return 0.0;
}

}  // namespace utrain
