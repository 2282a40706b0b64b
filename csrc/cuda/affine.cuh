// The affine ops by CUDA blocks. Consumer cards have a sixty-fourth of their float32 rate in float64, so the pixels are
// made in integers, which tell the level of arithmetic/affine.h in double for all but about one in a thousand. These few
// are listed and made in double afterwards.
//
// Where the integers cannot tell.
//
// 1. Coordinates are sums of int64 in steps of 2**-36 pixels. The fixed matrix rounds each of its numbers, by half a
//    step: with W columns and H rows that are less than W + H steps. The double rounds two products and three sums of
//    less than 2**20, by 2**-53 of it each: less than 40 steps. The fraction is cut off to units of 2**-32 pixels, 16
//    steps: one unit. All that is less than `slack` = (W + H) / 16 + 6 units. A pixel whose coordinate lies nearer than
//    `slack` to a source pixel's centre or edge is listed: it might be another pixel, or outside. Where all numbers are
//    multiples of 2**-31 both calculations are exact and `slack` is 0: of shear_x, the rows.
//
// 2. The weights of a point's taps, in units of 2**-22, are rounded but for one, which makes their sum 2**22. A rounded
//    one errs by half a unit, and by 0.04 since the powers of the fraction d are cut off to 2**-28. Levels differ by at
//    most 255, so the sum errs by less than 3 * 0.54 * 255 < 414 units. That d errs by `slack` changes it by less than
//    slack / 2: a sum changes with d by at most 255 times the growing weights' derivatives, which for the cubic are
//    together at most 3/2, at d = 1/2.
//
// 3. In two directions, the sums of four rows are weighed again. The cubic's weights have sizes of together at most 3/2,
//    and sums differ by at most 3/2 * 255: both errors of the second pass are 3/2 of the first's: less than 1244 units
//    and the slacks of both axes.
//
// 4. Double itself errs by less than 2**-30 levels. So where no whole level lies within these errors of the sum, cutting
//    off the sum's fraction gives the double's level. Equal taps give that level in both.
#pragma once

#include <cmath>
#include <cstdint>

#include "../arithmetic/affine.h"
#include "../arithmetic/colour.h"
#include "../arithmetic/plan.h"
#include "../arithmetic/resample.h"
#include "block.cuh"

namespace deit::cuda {

// An image as words of a pixel, its edge pixels repeated `margin` times on every side: no tap has to be clipped.
struct Padded {
  static constexpr int32_t margin = 2;
  uint32_t* words;
  int32_t height, width;

  DEVICE int32_t stride() const { return width + 2 * margin; }
  DEVICE uint32_t* at(int32_t row, int32_t column) const {
    return words + (int64_t{row} + margin) * stride() + margin + column;
  }

  DEVICE void fill(const uint8_t* image) const {
    const auto copy = [&](int32_t row, int32_t column) {
      const int64_t from = int64_t{clipped(row, height)} * width + clipped(column, width);
      *at(row, column) = pixel_at(image + 3 * from);
    };
    const auto outside = [](int32_t index, int32_t count) {  // of the indices 0 to 3: -2, -1, count and count + 1
      return index < margin ? index - margin : count + index - margin;
    };
    const Team team = Team::of_image();
    for (Cells cell(2 * margin, team); cell.row < height + 2 * margin; cell.next())
      copy(cell.row - margin, outside(cell.column, width));
    for (Cells cell(width, team); cell.row < 2 * margin; cell.next()) copy(outside(cell.row, height), cell.column);
    if (width % 4 == 0) {
      for (Cells cell(width / 4, team); cell.row < height; cell.next()) {
        const auto* from = reinterpret_cast<const uint32_t*>(image) + 3 * (int64_t{cell.row} * (width / 4) + cell.column);
        auto* to = reinterpret_cast<Words2*>(at(cell.row, 4 * cell.column));
        const Words4 four = four_pixels(from[0], from[1], from[2]);
        to[0] = {{four.word[0], four.word[1]}};
        to[1] = {{four.word[2], four.word[3]}};
      }
    } else {
      for (Cells cell(width, team); cell.row < height; cell.next()) copy(cell.row, cell.column);
    }
  }
};

// A source coordinate of the output pixel (x, y) less a half, in steps of 2**-36 pixels.
struct FixedAxis {
  int64_t origin, per_column, per_row;
  uint32_t slack;  // in units of 2**-32 pixels

  DEVICE int64_t at(int32_t x, int32_t y) const { return origin + x * per_column + y * per_row; }
};

struct FixedAffine {
  FixedAxis x, y;
  bool usable;
};

DEVICE bool is_multiple(double value, double unit) { return rint(value / unit) * unit == value; }

DEVICE FixedAxis fixed_axis(const double* line, uint32_t slack) {
  // A pixel's centre is half a pixel away from its index.
  const auto per_half_column = static_cast<int64_t>(rint(line[0] * 0x1p35));
  const auto per_half_row = static_cast<int64_t>(rint(line[1] * 0x1p35));
  const auto shift = static_cast<int64_t>(rint(line[2] * 0x1p36));
  const bool exact = is_multiple(line[0], 0x1p-31) && is_multiple(line[1], 0x1p-31) && is_multiple(line[2], 0x1p-31);
  return {shift + per_half_column + per_half_row - (int64_t{1} << 35), 2 * per_half_column, 2 * per_half_row,
          exact ? 0 : slack};
}

DEVICE FixedAffine fixed_affine(const double* matrix, int32_t height, int32_t width) {
  constexpr double limit = 1 << 20;
  if (height > limit || width > limit || int64_t{height} * width > (1 << 28)) return {};
  for (int line = 0; line < 6; line += 3)
    if (!(fabs(matrix[line]) * width + fabs(matrix[line + 1]) * height + fabs(matrix[line + 2]) < limit))
      return {};  // or a number is NaN
  const uint32_t slack = static_cast<uint32_t>(height + width) / 16 + 6;
  return {fixed_axis(matrix, slack), fixed_axis(matrix + 3, slack), true};
}

// The weights of the taps -1, 0, 1 and 2 pixels from a point's pixel, from which it is `fraction` * 2**-32 away.
struct FixedWeights {
  int32_t weight[4];

  DEVICE FixedWeights(Filter filter, uint32_t fraction) {
    const auto d = static_cast<int32_t>(fraction >> 4);  // its powers in units of 2**-28
    const auto square = static_cast<uint32_t>(uint64_t{fraction} * fraction >> 32);
    const auto d2 = static_cast<int32_t>(square >> 4);
    const auto d3 = static_cast<int32_t>(uint64_t{square} * fraction >> 36);
    const auto rounded = [](int32_t value) { return (value + 32) >> 6; };
    const bool cubic = filter == Filter::bicubic;
    weight[0] = cubic ? rounded(2 * d2 - d - d3) : 0;
    weight[2] = rounded(cubic ? d + d2 - d3 : d);
    weight[3] = cubic ? rounded(d3 - d2) : 0;
    weight[1] = (1 << precision) - weight[0] - weight[2] - weight[3];
  }
};

// A weighted sum of four taps for each channel, and the bits in which they differ.
struct FixedSums {
  int32_t sum[3];
  uint32_t difference;

  // The outer taps of a filter that has none are those beside them.
  DEVICE FixedSums(const FixedWeights& weights, bool has_outer, const uint32_t* at, int32_t step) {
    const uint32_t tap[4] = {at[has_outer ? -step : 0], at[0], at[step], at[has_outer ? 2 * step : step]};
    difference = (tap[0] ^ tap[1]) | (tap[2] ^ tap[1]) | (tap[3] ^ tap[1]);
    for (int c = 0; c < 3; ++c) {
      sum[c] = 0;
      for (int i = 0; i < 4; ++i) sum[c] += weights.weight[i] * level_of(tap[i], c);
    }
  }
};

struct FixedPixel {
  uint8_t rgb[3];
  bool certain;
};

DEVICE FixedPixel fixed_pixel(const FixedAffine& affine, const Padded& source, const OpCall& call, int32_t y, int32_t x) {
  const int64_t at_x = affine.x.at(x, y), at_y = affine.y.at(x, y);
  const auto dx = static_cast<uint32_t>(at_x >> 4), dy = static_cast<uint32_t>(at_y >> 4);
  if (2 * (dx + affine.x.slack) < 4 * affine.x.slack || 2 * (dy + affine.y.slack) < 4 * affine.y.slack)
    return {{}, false};
  constexpr int64_t half = int64_t{1} << 35;
  const auto inside_x = static_cast<uint32_t>((at_x + half) >> 36), inside_y = static_cast<uint32_t>((at_y + half) >> 36);
  if (inside_x >= static_cast<uint32_t>(source.width) || inside_y >= static_cast<uint32_t>(source.height))
    return {{call.fill[0], call.fill[1], call.fill[2]}, true};
  const uint32_t* pixel = source.words + (static_cast<int32_t>(at_y >> 36) + Padded::margin) * source.stride() +
                          Padded::margin + static_cast<int32_t>(at_x >> 36);
  const auto filter = static_cast<Filter>(call.filter);
  const bool has_outer = filter == Filter::bicubic;
  // A fraction of 0 is exact: others as small are not certain.
  if (dx == 0 && dy == 0)
    return {{static_cast<uint8_t>(level_of(*pixel, 0)), static_cast<uint8_t>(level_of(*pixel, 1)),
             static_cast<uint8_t>(level_of(*pixel, 2))},
            true};
  int32_t sum[3];
  uint32_t difference;
  int32_t error = static_cast<int32_t>(affine.x.slack + affine.y.slack);
  if (dx == 0 || dy == 0) {
    const FixedSums sums(FixedWeights(filter, dx + dy), has_outer, pixel, dx == 0 ? source.stride() : 1);
    for (int c = 0; c < 3; ++c) sum[c] = sums.sum[c];
    difference = sums.difference;
    error += 414;
  } else {
    const FixedWeights across(filter, dx), down(filter, dy);
    int64_t total[3] = {0, 0, 0};
    difference = 0;
    for (int i = 0; i < 4; ++i) {
      const int32_t below = has_outer ? i - 1 : i / 2;
      const uint32_t* row = pixel + below * source.stride();
      const FixedSums sums(across, has_outer, row, 1);
      for (int c = 0; c < 3; ++c) total[c] += int64_t{down.weight[i]} * sums.sum[c];
      difference |= sums.difference | (*row ^ *pixel);
    }
    for (int c = 0; c < 3; ++c) sum[c] = static_cast<int32_t>(total[c] >> precision);
    error += 1244;
  }
  FixedPixel result{{}, true};
  for (int c = 0; c < 3; ++c) {
    const int32_t beyond_level = (sum[c] + error) & ((1 << precision) - 1);
    if (beyond_level <= 2 * error && level_of(difference, c) != 0) result.certain = false;
    result.rgb[c] = clip8(sum[c]);
  }
  return result;
}

// In double as Pillow, or in float for the fast mode.
template <typename Real>
struct Rgb {
  Real red, green, blue;
};
template <typename Real>
HOST_DEVICE Rgb<Real> operator+(Rgb<Real> a, Rgb<Real> b) {
  return {a.red + b.red, a.green + b.green, a.blue + b.blue};
}
template <typename Real>
HOST_DEVICE Rgb<Real> operator-(Rgb<Real> a, Rgb<Real> b) {
  return {a.red - b.red, a.green - b.green, a.blue - b.blue};
}
template <typename Real, typename Scale>
HOST_DEVICE Rgb<Real> operator*(Rgb<Real> a, Scale scale) {
  const Real by = scale;
  return {a.red * by, a.green * by, a.blue * by};
}

template <typename Real>
DEVICE void real_pixel(const Padded& source, const OpCall& call, int32_t y, int32_t x, uint8_t* rgb) {
  Real matrix[6];
  for (int i = 0; i < 6; ++i) matrix[i] = static_cast<Real>(call.matrix[i]);
  const Point<Real> point = source_point(matrix, y, x, source.height, source.width);
  if (!point.inside) {
    for (int c = 0; c < 3; ++c) rgb[c] = call.fill[c];
    return;
  }
  const auto value = interpolate<Rgb<Real>>(
      point, static_cast<Filter>(call.filter), source.height, source.width, [&](int32_t row, int32_t column) {
        const uint32_t pixel = *source.at(row, column);
        return Rgb<Real>{Real(level_of(pixel, 0)), Real(level_of(pixel, 1)), Real(level_of(pixel, 2))};
      });
  rgb[0] = truncated(value.red);
  rgb[1] = truncated(value.green);
  rgb[2] = truncated(value.blue);
}

// Called, not inlined: few pixels need it, and it would take registers from the others.
DEVICE_CALL void exact_pixel(Padded source, const OpCall* call, int32_t y, int32_t x, uint8_t* rgb) {
  real_pixel<double>(source, *call, y, x, rgb);
}

// What a block shares of an affine op: the fixed matrix and those of its pixels that are not certain, or too many.
struct AffineShared {
  static constexpr uint32_t capacity = 1024;
  FixedAffine fixed;
  uint32_t listed;
  int32_t pixel[capacity];
};

DEVICE void affine_pixels(const Padded& source, const OpCall& call, AffineShared& shared, uint8_t* image) {
  const int32_t height = source.height, width = source.width;
  const Team team = Team::of_image();
  if (call.fast) {
    for (Cells cell(width, team); cell.row < height; cell.next())
      real_pixel<float>(source, call, cell.row, cell.column, image + 3 * (int64_t{cell.row} * width + cell.column));
    return;
  }
  if (threadIdx.x == 0) {
    shared.fixed = fixed_affine(call.matrix, height, width);
    shared.listed = 0;
  }
  __syncthreads();
  const bool usable = shared.fixed.usable;
  if (usable) {
    const FixedAffine affine = shared.fixed;
    // A warp makes four lines of eight pixels: turned, they are read from fewer lines than 32 pixels of a line.
    const bool tiled = width % 8 == 0;
    for (Cells cell(tiled ? 4 * width : width, team); cell.row < (tiled ? divided_up(height, 4) : height); cell.next()) {
      const int32_t row = tiled ? 4 * cell.row + cell.column / 8 % 4 : cell.row;
      const int32_t column = tiled ? cell.column / 32 * 8 + cell.column % 8 : cell.column;
      if (row >= height) continue;
      const int32_t index = row * width + column;
      const FixedPixel pixel = fixed_pixel(affine, source, call, row, column);
      if (pixel.certain) {
        for (int c = 0; c < 3; ++c) image[3 * index + c] = pixel.rgb[c];
      } else {
        const uint32_t place = atomicAdd(&shared.listed, 1u);
        if (place < AffineShared::capacity) shared.pixel[place] = index;
      }
    }
    __syncthreads();
  }
  if (usable && shared.listed <= AffineShared::capacity) {
    for (uint32_t i = threadIdx.x; i < shared.listed; i += blockDim.x) {
      const int32_t index = shared.pixel[i];
      exact_pixel(source, &call, index / width, index % width, image + 3 * int64_t{index});
    }
  } else {
    for (Cells cell(width, team); cell.row < height; cell.next())
      exact_pixel(source, &call, cell.row, cell.column, image + 3 * (int64_t{cell.row} * width + cell.column));
  }
}

}  // namespace deit::cuda
