// What random erasing fills its box with, in normalised space: N(0, 1) for each value, one colour, or 0.
//
// Source: timm 1.0 RandomErasing, modes "pixel", "rand" and "const"; its generator replaced by Philox with the counter
// (epoch, sample, copy, place in the output), so that an image's noise is the same wherever it ends up. Four pixels
// whose numbers y * size + x follow a multiple of 4 are a quad: a counter gives the four normal numbers of one channel.
//
// Normal numbers are Box's and Muller's, in float32: + - * and sqrt, which are correctly rounded everywhere, in one
// fixed order, so that noise.py has the same bits. Nothing branches, so that a loop over quads vectorises. The squared
// radius errs by less than 4.2e-7 of its value, sine and cosine by less than 2.2e-7.
#pragma once

#include <cmath>

#include "normalise.h"
#include "philox.h"
#include "plan.h"

namespace deit {

struct NoisePair {
  float first, second;
};

HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// -2 ln(u) for u = k / 2**31 (1 - 2**-23), k the float nearest to an integer in [1, 2**31]: k = 2**(31 - e) m with m in
// [sqrt(1/2), sqrt(2)), and e ln 4 - 2 ln m, a series of m - 1. The factor keeps it above 0.
HOST_DEVICE float squared_radius(uint32_t k) {
  constexpr uint32_t root_half = 0x3F3504F3, exponent = 0xFF800000, one = 1u << 23;
  const uint32_t bits = float_bits(static_cast<float>(static_cast<int32_t>(k)));
  const uint32_t e = (root_half + 32 * one - 1 - bits) & exponent;  // e * 2**23
  const float f = float_of(bits + e - 31 * one) - 0x1.000002p0f;
  float series = 0.202135488f;
  series = series * f - 0.324450791f;
  series = series * f + 0.345017016f;
  series = series * f - 0.398003429f;
  series = series * f + 0.499398172f;
  series = series * f - 0.666701198f;
  series = series * f + 1.00000727f;
  series = series * f - 1.99999988f;
  return series * f + static_cast<float>(static_cast<int32_t>(e)) * 0x1.62e43p-23f;
}

// sqrt(x) for x that is far from 0 and infinity, which nvcc's sqrtf would ask about; correctly rounded, as it is.
HOST_DEVICE float root_of(float x) {
#ifdef __CUDA_ARCH__
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  const float root = x * inverse;
  return fused(fused(-root, root, x), 0.5f * inverse, root);
#else
  return sqrtf(x);
#endif
}

// Two independent normal numbers of mean 0 and deviation 1, of which the largest is 6.56. The angle is one of the first
// quadrant, pi/4 (1 + x) with x in [-1, 1); each word gives a number's sign.
HOST_DEVICE NoisePair noise_pair(uint32_t radius_word, uint32_t angle_word) {
  constexpr uint32_t sign = 0x80000000;
  const float radius = root_of(squared_radius((radius_word & ~sign) | 1));
  const float x = static_cast<float>(static_cast<int32_t>(angle_word << 1)) * 0x1p-31f;
  const float z = x * x;
  float cosine = -0.000225482567f, sine = -2.54236766e-05f;  // of pi/4 x, times sqrt(1/2)
  cosine = cosine * z + 0.0112075824f;
  sine = sine * z + 0.00176070095f;
  cosine = cosine * z - 0.21808888f;
  sine = sine * z - 0.0570956431f;
  cosine = cosine * z + 0.707106769f;
  sine = sine * z + 0.555360377f;
  sine = sine * x;
  return {float_of(float_bits(radius * (cosine - sine)) ^ (angle_word & sign)),
          float_of(float_bits(radius * (cosine + sine)) ^ (radius_word & sign))};
}

// The words of one channel of a quad, which has the number of its first pixel, divided by 4.
HOST_DEVICE Words noise_words(const PlanRow& row, uint32_t quad, uint32_t channel) {
  return philox(row.seed, Stream::noise, row.epoch, row.sample, row.copy, 3 * quad + channel);
}

// One channel of one pixel. A single colour is that of pixel 0.
HOST_DEVICE float noise_at(const PlanRow& row, uint32_t pixel, uint32_t channel) {
  if (row.erase == Erase::constant) return 0.0f;
  if (row.erase == Erase::random) pixel = 0;
  const Words words = noise_words(row, pixel / 4, channel);
  const uint32_t pair = pixel & 2;
  const NoisePair noise = noise_pair(words.word[pair], words.word[pair + 1]);
  return pixel & 1 ? noise.second : noise.first;
}

HOST_DEVICE bool is_erased(const PlanRow& row, int32_t y, int32_t x) {
  const Box& box = row.erased;
  return row.erase != Erase::none && box.top <= y && y < box.top + box.height && box.left <= x &&
         x < box.left + box.width;
}

}  // namespace deit
