// Gaussian blur by an image's CUDA blocks, pass by pass, from the image to scratch memory and back.
#pragma once

#include <cstdint>

#include "../../arithmetic/affine.h"
#include "../../arithmetic/blur.h"
#include "../block.cuh"

namespace deit::cuda {

// The sums of the three channels, each below 2**16.
struct ChannelSums {
  uint32_t red_blue = 0, green = 0;

  DEVICE void add(uint32_t pixel) {
    red_blue += pixel & 0xFF00FF;
    green += pixel >> 8 & 0xFF;
  }
};

// One pass over an image: load(row, column) gives a pixel of what was there before, store(row, column, pixel) takes it.
template <typename Load, typename Store>
DEVICE void box_pass(const BoxBlur& box, int32_t height, int32_t width, bool along_lines, const Load& load,
                     const Store& store) {
  const int32_t reach = box.radius + 1;
  for (Cells cell(width, Team::of_image()); cell.row < height; cell.next()) {
    const auto beside = [&](int32_t distance) {
      return along_lines ? load(cell.row, clipped(cell.column + distance, width))
                         : load(clipped(cell.row + distance, height), cell.column);
    };
    ChannelSums inside, ends;
    ends.add(beside(-reach));
    ends.add(beside(reach));
    for (int32_t distance = 1 - reach; distance < reach; ++distance) inside.add(beside(distance));
    store(cell.row, cell.column,
          pixel_of(blurred(box, inside.red_blue & 0xFFFF, ends.red_blue & 0xFFFF),
                   blurred(box, inside.green, ends.green), blurred(box, inside.red_blue >> 16, ends.red_blue >> 16)));
  }
  Team::sync();
}

// `words` has a word for each pixel.
DEVICE void blur_pixels(uint8_t* image, uint32_t* words, int32_t height, int32_t width, double deviation) {
  const BoxBlur box = box_blur(deviation);
  const auto index = [width](int32_t row, int32_t column) { return int64_t{row} * width + column; };
  const auto from_image = [&](int32_t row, int32_t column) { return pixel_at(image + 3 * index(row, column)); };
  const auto from_words = [&](int32_t row, int32_t column) { return words[index(row, column)]; };
  const auto to_words = [&](int32_t row, int32_t column, uint32_t pixel) { words[index(row, column)] = pixel; };
  const auto to_image = [&](int32_t row, int32_t column, uint32_t pixel) {
    for (int c = 0; c < 3; ++c) image[3 * index(row, column) + c] = static_cast<uint8_t>(level_of(pixel, c));
  };
  for (int pass = 0; pass < 2 * blur_passes; pass += 2) {
    box_pass(box, height, width, pass < blur_passes, from_image, to_words);
    box_pass(box, height, width, pass + 1 < blur_passes, from_words, to_image);
  }
}

}  // namespace deit::cuda
