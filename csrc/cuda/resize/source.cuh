// What both ways of resizing an image share: its row, its crop, and how its bytes are loaded.
#pragma once

#include <cstdint>

#include "../../arithmetic/plan.h"
#include "../../arithmetic/resample.h"
#include "../block.cuh"

namespace deit::cuda {

constexpr int32_t lines_of_band = 56;  // output lines of a block, at most

// The part of a block's shared memory that comes first.
struct alignas(16) ResizeSource {
  PlanRow row;
  const uint8_t *crop, *begin, *end;  // the crop's first pixel; the buffer
  Axis across, down;
  bool good, tiled;   // tiled: by tile.cuh, else by band.cuh
  bool words_inside;  // whether what is loaded round the crop's pixels, in words of 4 or 16 bytes, lies in the buffer

  // By one thread, behind the row; `good` by another.
  DEVICE void find(const uint8_t* data, int64_t data_bytes) {
    const int64_t first = row.offset + 3 * (row.box.top * int64_t{row.width} + row.box.left);
    const int64_t crop_bytes = 3 * int64_t{row.width} * row.box.height;
    words_inside = first >= 16 && first + crop_bytes + 64 <= data_bytes;
    crop = data + first;
    begin = data;
    end = data + data_bytes;
    across = {row.box.width, row.resized_width, row.filter};
    down = {row.box.height, row.resized_height, row.filter};
  }
};

struct Words3 {
  uint32_t word[3];
};

// 12 bytes, which may begin anywhere: from the words round them, or where these may lie outside the buffer, from the
// bytes before `end`.
DEVICE Words3 load_twelve(const uint8_t* bytes, bool words_inside, const uint8_t* end) {
  if (words_inside) {
    const auto address = reinterpret_cast<uintptr_t>(bytes);
    const auto* words = reinterpret_cast<const uint32_t*>(address / 4 * 4);
    const uint32_t word[4] = {load_global(words), load_global(words + 1), load_global(words + 2), load_global(words + 3)};
    const uint32_t ahead = address % 4;
    return {{word_between(word[0], word[1], ahead), word_between(word[1], word[2], ahead),
             word_between(word[2], word[3], ahead)}};
  }
  Words3 result{};
#pragma unroll
  for (int i = 0; i < 12; ++i)
    if (bytes + i < end) result.word[i / 4] |= uint32_t{bytes[i]} << 8 * (i % 4);
  return result;
}

DEVICE Words4 load_four(const uint8_t* pixels, bool words_inside, const uint8_t* end) {
  const Words3 bytes = load_twelve(pixels, words_inside, end);
  return four_pixels(bytes.word[0], bytes.word[1], bytes.word[2]);
}

}  // namespace deit::cuda
