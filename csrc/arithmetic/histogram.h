// The ops whose table of 256 levels comes from the channel's histogram.
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

// Stretches the levels in use to [0, 255].
HOST_DEVICE void auto_contrast_table(const uint32_t* histogram, uint8_t* table) {
  int low = 0, high = levels - 1;
  while (low < high && histogram[low] == 0) ++low;
  while (high > low && histogram[high] == 0) --high;
  if (high <= low) return identity_table(table);
  const double scale = 255.0 / (high - low), offset = -low * scale;
  for (int level = 0; level < levels; ++level) {
    const int stretched = static_cast<int>(level * scale + offset);
    table[level] = static_cast<uint8_t>(stretched < 0 ? 0 : stretched > 255 ? 255 : stretched);
  }
}

// Spreads the levels so that each is used about equally often.
HOST_DEVICE void equalize_table(const uint32_t* histogram, uint8_t* table) {
  uint64_t total = 0, last = 0;
  int used = 0;
  for (int level = 0; level < levels; ++level) {
    total += histogram[level];
    if (histogram[level] != 0) {
      last = histogram[level];
      ++used;
    }
  }
  const uint64_t step = (total - last) / 255;
  if (used <= 1 || step == 0) return identity_table(table);
  uint64_t below = step / 2;
  for (int level = 0; level < levels; ++level) {
    const uint64_t rank = below / step;
    table[level] = static_cast<uint8_t>(rank < 255 ? rank : 255);
    below += histogram[level];
  }
}

}  // namespace deit
