// Where the last stage's threads find pixels and store values: bands of lines, and the output's layouts.
#pragma once

#include <cstdint>

#include "../../arithmetic/normalise.h"
#include "../block.cuh"

namespace deit::cuda {

constexpr int32_t band = 4;   // lines of which a warp makes some columns
constexpr int32_t group = 8;  // pixels of a line that a thread makes at once
constexpr int32_t quad = 4;   // and of those that are erased

// Two values as their bits, the first in the lower half, to nearest, ties to even: what element_bits gives, but for
// other bits of a NaN.
template <Type type>
DEVICE uint32_t two_bits(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  if constexpr (type == Type::float16) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  if constexpr (type == Type::bfloat16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
#else
  return uint32_t{element_bits<type>(first)} | uint32_t{element_bits<type>(second)} << 16;
#endif
}

// Eight values to where they lie together in the output: a multiple of 16 bytes.
template <Type type>
DEVICE void store_eight(const float (&value)[group], typename Element<type>::Bits* to) {
  if constexpr (type == Type::float32) {
    store_global({{float_bits(value[0]), float_bits(value[1]), float_bits(value[2]), float_bits(value[3])}}, to);
    store_global({{float_bits(value[4]), float_bits(value[5]), float_bits(value[6]), float_bits(value[7])}}, to + 4);
  } else {
    store_global({{two_bits<type>(value[0], value[1]), two_bits<type>(value[2], value[3]),
                   two_bits<type>(value[4], value[5]), two_bits<type>(value[6], value[7])}},
                 to);
  }
}

// Four values to where they lie together in the output: a multiple of 8 bytes, of 16 for float32.
template <Type type>
DEVICE void store_four(const float (&value)[quad], typename Element<type>::Bits* to) {
  if constexpr (type == Type::float32)
    store_global({{float_bits(value[0]), float_bits(value[1]), float_bits(value[2]), float_bits(value[3])}}, to);
  else
    *reinterpret_cast<Words2*>(to) = {{two_bits<type>(value[0], value[1]), two_bits<type>(value[2], value[3])}};
}

// place_of without an integer division; an image's values are fewer than 2**31. Without patches the image is one.
struct Places {
  uint32_t channel;  // how far the next channel is

  DEVICE Places(int32_t size, const Finish& finish)
      : channel(finish.layout == Layout::channels_last ? 1
                : finish.layout == Layout::nchw        ? size * size
                                                       : finish.patch * finish.patch),
        side(finish.layout == Layout::patches ? finish.patch : size), inverse(reciprocal(static_cast<float>(side))),
        down(side * (3 * size - side)), right(finish.layout == Layout::patches ? (3 * side - 1) * side : 0),
        pixel(finish.layout == Layout::channels_last ? 3 : 1) {}

  DEVICE uint32_t first(int32_t y, int32_t x) const {
    const auto patch_of = [&](int32_t at) { return static_cast<int32_t>((static_cast<float>(at) + 0.5f) * inverse); };
    return static_cast<uint32_t>(pixel * (y * side + x) + down * patch_of(y) + right * patch_of(x));
  }

  int32_t side;
  float inverse;        // as in quotient()
  int32_t down, right;  // values from a patch to those below it and beside it, less what its lines count for
  int32_t pixel;        // how far the next pixel is: 3 where channels come last
};

// The cells of a band of lines from line `top` on, and of every band `step` lines further on: down the lines of a band,
// then on to the next column.
struct BandCells {
  uint32_t columns, top, column, down, right, step;

  DEVICE BandCells(int32_t columns_of_line, int32_t top_line, int32_t step_lines) {
    const Cells cell(band * columns_of_line);
    columns = band * columns_of_line;
    step = step_lines;
    top = top_line + step_lines * cell.row;
    down = step_lines * cell.rows_on;
    column = cell.column;
    right = cell.columns_on;
  }

  DEVICE int32_t y() const { return static_cast<int32_t>(top | (column % band)); }  // top is a multiple of a band's lines
  DEVICE int32_t x() const { return static_cast<int32_t>(column / band); }

  DEVICE void next() {
    top += down;
    column += right;
    if (column >= columns) {
      column -= columns;
      top += step;
    }
  }
};

}  // namespace deit::cuda
