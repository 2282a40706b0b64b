// The weights of all outputs of a resize pass along one axis.
#pragma once

#include <cstdint>
#include <vector>

#include "../arithmetic/resample.h"

namespace deit::cpu {

constexpr int taps_at_once = 4;  // of a byte dot product
constexpr int digits = 3;        // of a weight, to base 256

// Output i weighs the sources [first[i], first[i] + count[i]); together the outputs read [lowest, end). The first
// output need not be the one that reads lowest.
struct Weights {
  std::vector<int32_t> first, count;
  std::vector<int32_t> value;  // [tap][output], 0 from the output's count on
  // The values of four taps, -128 ... 127 in every byte, for dot products: [tap / 4][digit, lowest first][output].
  std::vector<int32_t> quad;
  int32_t lowest, end;

  // Outputs [window, window + size) of an axis that is `resized` long, mirrored beyond its ends.
  void build(const Axis& axis, int32_t resized, int32_t window, int32_t size);

 private:
  std::vector<double> centre, weight, total;
};

}  // namespace deit::cpu
