// Pillow's antialiased resize along one axis: which source pixels an output reads, with which fixed-point weights.
//
// A resize is a horizontal pass, then a vertical one, each rounded to uint8. Pillow skips a pass between equal sizes;
// the weights are then 0 and 1 and the pass copies, so it needs no case of its own.
//
// Source: Pillow 12 src/libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc, in double, without FMA.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "plan.h"

namespace deit {

constexpr int precision = 22;  // bits after the point of a weight
constexpr int32_t one_half = 1 << (precision - 1);

HOST_DEVICE uint8_t clip8(int32_t sum) {
  const int32_t level = sum >> precision;
  return static_cast<uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
}

HOST_DEVICE double bilinear(double x) {
  if (x < 0.0) x = -x;
  return x < 1.0 ? 1.0 - x : 0.0;
}

HOST_DEVICE double bicubic(double x) {
  constexpr double a = -0.5;
  if (x < 0.0) x = -x;
  const double near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, far = (((x - 5) * x + 8) * x - 4) * a;
  return x < 1.0 ? near : x < 2.0 ? far : 0.0;
}

// The source pixels [first, first + count) of one output pixel, whose centre lies at `centre` on the source axis.
struct Taps {
  int32_t first, count;
  double centre;
};

struct Axis {
  int32_t before;
  Filter filter;
  double scale, stretch, support, narrowing;  // narrowing: 1 / stretch

  HOST_DEVICE Axis(int32_t before, int32_t after, Filter filter) : before(before), filter(filter) {
    scale = static_cast<double>(before) / after;
    stretch = scale < 1.0 ? 1.0 : scale;
    support = (filter == Filter::bicubic ? 2.0 : 1.0) * stretch;
    narrowing = 1.0 / stretch;
  }

  HOST_DEVICE Taps taps(int32_t output) const {
    const double centre = (output + 0.5) * scale;
    int32_t first = static_cast<int32_t>(centre - support + 0.5);
    int32_t end = static_cast<int32_t>(centre + support + 0.5);
    if (first < 0) first = 0;
    if (end > before) end = before;
    return {first, end - first, centre};
  }

  // Weight of source pixel `at`, not yet normalised.
  template <Filter known>
  HOST_DEVICE double weight(const Taps& taps, int32_t at) const {
    const double x = (at - taps.centre + 0.5) * narrowing;
    return known == Filter::bicubic ? bicubic(x) : bilinear(x);
  }
  HOST_DEVICE double weight(const Taps& taps, int32_t at) const {
    return filter == Filter::bicubic ? weight<Filter::bicubic>(taps, at) : weight<Filter::bilinear>(taps, at);
  }

  // Tap by tap: the order of a floating-point sum decides its last bit.
  HOST_DEVICE double total(const Taps& taps) const {
    double sum = 0.0;
    for (int32_t at = taps.first; at < taps.first + taps.count; ++at) sum += weight(taps, at);
    return sum;
  }
};

HOST_DEVICE int32_t fixed_point(double weight, double total) {
  if (total != 0.0) weight /= total;
  return static_cast<int32_t>(weight * (1 << precision) + (weight < 0 ? -0.5 : 0.5));
}

}  // namespace deit
