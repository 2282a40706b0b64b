// The ops whose table of 256 levels comes from the channel's histogram. A CPU makes whole tables, each thread of a CUDA
// block one level.
//
// Source: Pillow 12 ImageOps.autocontrast (no cut-off) and ImageOps.equalize.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace deit {

constexpr int levels = 256;

HOST_DEVICE void identity_table(uint8_t* table) {
  for (int level = 0; level < levels; ++level) table[level] = static_cast<uint8_t>(level);
}

// The lowest and the highest level that a pixel has.
struct UsedLevels {
  int low, high;
};

HOST_DEVICE UsedLevels used_levels(const uint32_t* histogram) {
  UsedLevels used{levels, -1};
  for (int level = 0; level < levels; ++level)
    if (histogram[level] != 0) {
      used.low = level < used.low ? level : used.low;
      used.high = level;
    }
  return used;
}

// Stretches the levels in use to [0, 255].
HOST_DEVICE uint8_t stretched(int level, UsedLevels used) {
  if (used.high <= used.low) return static_cast<uint8_t>(level);
  const double scale = 255.0 / (used.high - used.low), offset = -used.low * scale;
  const int stretched = static_cast<int>(level * scale + offset);
  return static_cast<uint8_t>(stretched < 0 ? 0 : stretched > 255 ? 255 : stretched);
}

HOST_DEVICE void auto_contrast_table(const uint32_t* histogram, uint8_t* table) {
  const UsedLevels used = used_levels(histogram);
  for (int level = 0; level < levels; ++level) table[level] = stretched(level, used);
}

// How many pixels share a level once each is used about equally often; 0 where the levels stay.
HOST_DEVICE uint64_t equalized_step(const uint32_t* histogram) {
  uint64_t total = 0, last = 0;
  int used = 0;
  for (int level = 0; level < levels; ++level) {
    total += histogram[level];
    if (histogram[level] != 0) {
      last = histogram[level];
      ++used;
    }
  }
  return used <= 1 ? 0 : (total - last) / 255;
}

// Of a level with `below` pixels below it.
HOST_DEVICE uint8_t equalized(int level, uint64_t below, uint64_t step) {
  if (step == 0) return static_cast<uint8_t>(level);
  const uint64_t sum = below + step / 2;
  // A card divides 32 bits faster.
  const uint64_t rank = (sum | step) >> 32 == 0 ? static_cast<uint32_t>(sum) / static_cast<uint32_t>(step) : sum / step;
  return static_cast<uint8_t>(rank < 255 ? rank : 255);
}

HOST_DEVICE void equalize_table(const uint32_t* histogram, uint8_t* table) {
  const uint64_t step = equalized_step(histogram);
  uint64_t below = 0;
  for (int level = 0; level < levels; ++level) {
    table[level] = equalized(level, below, step);
    below += histogram[level];
  }
}

}  // namespace deit
