// Gaussian blur as Pillow makes it: three box blurs along the lines, then three along the columns, each rounded to
// uint8. A box's ends count in part, so that the three have the wanted deviation together. Pixels beyond the edge repeat
// it.
//
// Source: Pillow 12 src/libImaging/BoxBlur.c; its radius is computed in float32, its sums in 32-bit integers.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace deit {

constexpr double max_deviation = 100.0;
constexpr int blur_passes = 3;  // along each axis

// The weights, in units of 2**-24, of the 2 radius + 1 pixels round an output, and of the one beyond them on each side.
struct BoxBlur {
  int32_t radius;
  uint32_t inner, outer;
};

// For a deviation in pixels, from 0 to max_deviation.
HOST_DEVICE BoxBlur box_blur(double deviation) {
  const auto sigma = static_cast<float>(deviation > 0 ? (deviation < max_deviation ? deviation : max_deviation) : 0.0);
  const float variance = sigma * sigma / static_cast<float>(blur_passes);
  const auto length = static_cast<float>(sqrt(12.0 * static_cast<double>(variance) + 1.0));
  const auto whole = static_cast<float>(floor((static_cast<double>(length) - 1.0) / 2.0));
  float part = (2.0f * whole + 1.0f) * (whole * (whole + 1.0f) - 3.0f * variance);
  part /= 6.0f * (variance - (whole + 1.0f) * (whole + 1.0f));
  const float box = whole + part;
  const auto radius = static_cast<int32_t>(box);
  const auto inner = static_cast<uint32_t>(16777216.0f / (box * 2.0f + 1.0f));
  return {radius, inner, ((1u << 24) - static_cast<uint32_t>(2 * radius + 1) * inner) / 2};
}

// Of the levels' sums inside the box and at its ends.
HOST_DEVICE uint8_t blurred(const BoxBlur& box, uint32_t inside, uint32_t ends) {
  return static_cast<uint8_t>((inside * box.inner + ends * box.outer + (1u << 23)) >> 24);
}

}  // namespace deit
