// What random erasing fills its box with, in normalised space: N(0, 1) for each value, one colour, or 0.
//
// Source: timm 1.0 RandomErasing, modes "pixel", "rand" and "const"; its generator replaced by Philox with the counter
// (epoch, sample, copy, pixel of the output), so that an image's noise is the same wherever it ends up.
#pragma once

#include "exact_math.h"
#include "philox.h"
#include "plan.h"

namespace deit {

// The three channels from the four words of one pixel.
HOST_DEVICE void noise_of_words(const Words& words, float* rgb) {
  const Normals pair = normals(words.word[0], words.word[1]);
  rgb[0] = static_cast<float>(pair.first);
  rgb[1] = static_cast<float>(pair.second);
  rgb[2] = static_cast<float>(normals(words.word[2], words.word[3]).first);
}

HOST_DEVICE Words noise_words(const PlanRow& row, uint32_t pixel) {
  return philox(row.seed, Stream::noise, row.epoch, row.sample, row.copy, row.erase == Erase::pixel ? pixel : 0);
}

HOST_DEVICE void noise_at(const PlanRow& row, uint32_t pixel, float* rgb) {
  rgb[0] = rgb[1] = rgb[2] = 0.0f;
  if (row.erase != Erase::constant) noise_of_words(noise_words(row, pixel), rgb);
}

HOST_DEVICE bool is_erased(const PlanRow& row, int32_t y, int32_t x) {
  const Box& box = row.erased;
  return row.erase != Erase::none && box.top <= y && y < box.top + box.height && box.left <= x &&
         x < box.left + box.width;
}

}  // namespace deit
