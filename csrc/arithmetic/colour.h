// The ops that change a pixel's levels where it stands, and the arithmetic of sharpness.
//
// Source: Pillow 12 ImageOps and ImageEnhance, libImaging/{Convert,Blend,Filter}.c; timm 1.0 auto_augment for
// solarize_add. Posterise to 0 bits gives zeros, as Pillow below 13 does.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "plan.h"

namespace deit {

// A rounded-down double inside [low, high]; NaN is low. The host has checked what it can, a device cannot.
HOST_DEVICE int32_t clamped(double value, int32_t low, int32_t high) {
  return value > low ? (value < high ? static_cast<int32_t>(value) : high) : low;
}

template <typename Real>
HOST_DEVICE uint8_t truncated(Real value) {
  return static_cast<uint8_t>(static_cast<int32_t>(value > 0 ? (value < 255 ? value : Real(255)) : Real(0)));
}

// ITU-R 601 in 16-bit fixed point: Pillow's convert("L").
HOST_DEVICE int32_t gray(int32_t red, int32_t green, int32_t blue) {
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
}

// Away from `degenerate` by `factor`; 1 is the level itself, beyond 1 it extrapolates.
HOST_DEVICE uint8_t blend(int32_t degenerate, int32_t level, float factor) {
  return truncated(static_cast<float>(degenerate) + factor * static_cast<float>(level - degenerate));
}

// (1 1 1; 1 5 1; 1 1 1) / 13, rounded. Pillow sums floats; 13 is odd, so no sum lies near enough to a tie to matter.
HOST_DEVICE int32_t smoothed(int32_t eight_neighbours, int32_t centre) {
  return (2 * (eight_neighbours + 5 * centre) + 13) / 26;
}

// Whether an op is a table of 256 levels that needs nothing but its argument, and the mean gray level for contrast.
HOST_DEVICE bool is_table(Op op) {
  return op == Op::invert || (Op::posterize <= op && op <= Op::solarize_add) || op == Op::contrast ||
         op == Op::brightness;
}

HOST_DEVICE uint8_t table_level(const OpCall& call, int32_t level, int32_t mean) {
  switch (call.op) {
    case Op::invert: return static_cast<uint8_t>(255 - level);
    case Op::posterize: return static_cast<uint8_t>(level & (0xFF00 >> clamped(call.arg, 0, 8)));
    case Op::solarize: return static_cast<uint8_t>(level < clamped(call.arg, 0, 256) ? level : 255 - level);
    case Op::solarize_add: {
      const int32_t sum = level + clamped(call.arg, 0, 255);
      return static_cast<uint8_t>(level >= 128 ? level : sum > 255 ? 255 : sum);
    }
    case Op::contrast: return blend(mean, level, static_cast<float>(call.arg));
    case Op::brightness: return blend(0, level, static_cast<float>(call.arg));
    default: return static_cast<uint8_t>(level);
  }
}

// Pillow's mean of the gray image, rounded half up.
HOST_DEVICE int32_t rounded_mean(uint64_t sum, uint64_t count) {
  return static_cast<int32_t>(static_cast<double>(sum) / static_cast<double>(count) + 0.5);
}

}  // namespace deit
