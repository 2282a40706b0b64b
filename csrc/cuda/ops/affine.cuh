// The affine ops in integers. Consumer cards have a sixty-fourth of their float32 rate in float64, so the pixels are made
// in integers, which tell the level of arithmetic/affine.h in double for all but about one in a thousand. These few are
// made in double.
//
// Where the integers cannot tell.
//
// 1. Coordinates are int64 in units of 2**-32 pixels, counted from the middle of the image: with W columns and H rows a
//    pixel lies at most W / 2 and H / 2 away. The fixed matrix rounds its numbers by half a unit: together by less than
//    (W + H) / 4 + 1 units. Double rounds two products and three sums of less than 2**20, by 2**-53 of it each, here and
//    at the middle: less than 2 * 2.5 units. All that is less than `slack` = (W + H) / 4 + 7 units; a number that is a
//    multiple of 2**-31 is not rounded, and where all are, both calculations are exact and `slack` is 0: of shear_x,
//    the rows. A pixel whose coordinate lies nearer than `slack` to a source pixel's centre or edge is uncertain: it
//    might be another pixel, or outside.
//
// 2. The weights of a point's four taps are numbers in units of 2**-30, made of powers of the fraction d that are cut
//    off to such units: each errs by less than 6 of them. For sums they are rounded to units of 2**-22, by half a unit
//    each. Levels are at most 255, so a sum of four errs by less than 4 * 0.53 * 255 < 541 units, and one of two, where
//    the other weights are 0, by less than 271. That d errs by `slack` changes
//    it by less than slack / 2: a sum changes with d by at most 255 times the growing weights' derivatives, which for
//    the cubic are together at most 3/2, at d = 1/2.
//
// 3. In two directions, the sums of four rows are weighed again, by the numbers that are not rounded. The cubic's
//    weights have sizes of together at most 3/2: both errors of a sum grow to 3/2 of them, less than 812 units; where
//    two rows are weighed they stay. Sums are less than 320 levels, so the other four weights' errors of 6 * 2**-30 make
//    less than 31 units, and `slack` of the rows counts as in 2, times 3/2. The result is cut off to units of 2**-20: all
//    that is less than 212 such units, or 77, and a quarter of both slacks.
//
// 4. Double itself errs by less than 2**-30 levels. So where no whole level lies within these errors of the sum, cutting
//    off the sum's fraction gives the double's level. Equal taps give that level in both.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../arithmetic/affine.h"
#include "../../arithmetic/colour.h"
#include "../../arithmetic/plan.h"
#include "groups.cuh"

namespace deit::cuda {

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

// In double as Pillow, or in float for the fast mode.
template <typename Real>
DEVICE void real_pixel(const Groups& source, const OpCall& call, int32_t y, int32_t x, uint8_t* rgb) {
  Real matrix[6];
  for (int i = 0; i < 6; ++i) matrix[i] = static_cast<Real>(call.matrix[i]);
  const Point<Real> point = source_point(matrix, y, x, source.height, source.width);
  if (!point.inside) {
    for (int c = 0; c < 3; ++c) rgb[c] = call.fill[c];
    return;
  }
  const auto value = interpolate<Rgb<Real>>(
      point, static_cast<Filter>(call.filter), source.height, source.width, [&](int32_t row, int32_t column) {
        const Words4 group = *source.at(row, column / 4);
        const auto level = [&](int c) { return Real(permuted(group.word[c], 0, 0x4440u + column % 4)); };
        return Rgb<Real>{level(0), level(1), level(2)};
      });
  rgb[0] = truncated(value.red);
  rgb[1] = truncated(value.green);
  rgb[2] = truncated(value.blue);
}

// Called, not inlined: few pixels need it, and it would take registers from the others.
DEVICE_CALL void exact_pixel(Groups source, const OpCall* call, int32_t y, int32_t x, uint8_t* rgb) {
  real_pixel<double>(source, *call, y, x, rgb);
}

constexpr int fraction_bits = 20;  // of a sum

// A source coordinate of the output pixel (x, y) less a half, in units of 2**-32 pixels: the upper word is a pixel, the
// lower one the fraction.
struct FixedAxis {
  int64_t origin, per_column, per_row;
  uint32_t slack;  // in such units

  DEVICE int64_t at(int32_t x, int32_t y) const {
    // Neither x nor y is negative: half a product of 64 bits.
    const auto times = [](int32_t index, int64_t step) {
      return uint64_t{static_cast<uint32_t>(index)} * static_cast<uint64_t>(step);
    };
    return static_cast<int64_t>(static_cast<uint64_t>(origin) + times(x, per_column) + times(y, per_row));
  }

  // Whether a fraction is so close to a pixel's centre or edge that double might be on the other side.
  DEVICE bool is_close(uint32_t fraction) const { return 2 * (fraction + slack) < 4 * slack; }
};

DEVICE int32_t whole(int64_t coordinate) { return static_cast<int32_t>(coordinate >> 32); }
DEVICE uint32_t fraction_of(int64_t coordinate) { return static_cast<uint32_t>(coordinate); }
DEVICE int32_t nearest(int64_t coordinate) { return whole(coordinate) + static_cast<int32_t>(fraction_of(coordinate) >> 31); }
DEVICE bool is_below(int32_t index, int32_t count) { return static_cast<uint32_t>(index) < static_cast<uint32_t>(count); }

struct FixedAffine {
  FixedAxis x, y;
  bool usable;
  int32_t error;  // of a sum, in units of 2**-fraction_bits levels
};

DEVICE bool is_multiple(double value, double unit) { return rint(value / unit) * unit == value; }

DEVICE FixedAxis fixed_axis(const double* line, int32_t height, int32_t width) {
  const auto units = [](double value) { return static_cast<int64_t>(rint(value * 0x1p32)); };
  const int32_t x = width / 2, y = height / 2;
  // A pixel's centre is half a pixel away from its index.
  const int64_t middle = units(line[0] * (x + 0.5) + line[1] * (y + 0.5) + line[2] - 0.5);
  const int64_t per_column = units(line[0]), per_row = units(line[1]);
  const bool columns = is_multiple(line[0], 0x1p-31), rows = is_multiple(line[1], 0x1p-31);
  const bool exact = columns && rows && is_multiple(line[2], 0x1p-31);
  const int32_t slack = exact ? 0 : (columns ? 0 : width / 4 + 1) + (rows ? 0 : height / 4 + 1) + 7;
  return {middle - x * per_column - y * per_row, per_column, per_row, static_cast<uint32_t>(slack)};
}

DEVICE FixedAffine fixed_affine(const double* matrix, Filter filter, int32_t height, int32_t width) {
  constexpr double limit = 1 << 20;
  if (height > limit || width > limit || int64_t{height} * width > (1 << 28)) return {};
  for (int line = 0; line < 6; line += 3)
    if (!(fabs(matrix[line]) * width + fabs(matrix[line + 1]) * height + fabs(matrix[line + 2]) < limit))
      return {};  // or a number is NaN
  const FixedAxis x = fixed_axis(matrix, height, width), y = fixed_axis(matrix + 3, height, width);
  return {x, y, true, (filter == Filter::bicubic ? 213 : 78) + static_cast<int32_t>(x.slack + y.slack) / 4};
}

// Of the taps -1, 0, 1 and 2 pixels from a point's pixel, from which it is `fraction` * 2**-32 away; in units of 2**-30.
struct TapWeights {
  int32_t weight[4];

  DEVICE TapWeights(Filter filter, uint32_t fraction) {
    constexpr int32_t one = 1 << 30;
    const auto d = static_cast<int32_t>(fraction >> 2);
    if (filter == Filter::bicubic) {
      const uint32_t square = high_product(fraction, fraction);
      const auto d2 = static_cast<int32_t>(square >> 2), d3 = static_cast<int32_t>(high_product(square, d));
      const int32_t last = d2 - d3;
      weight[0] = last - d + d2;
      weight[1] = one - last - d2;
      weight[2] = d + last;
      weight[3] = -last;
    } else {
      weight[0] = weight[3] = 0;
      weight[1] = one - d;
      weight[2] = d;
    }
  }
};

// The same, rounded to units of 2**-22: signed numbers of 16 bits in units of 2**-14, and what remains as bytes.
struct LineWeights {
  uint32_t first, last, low;

  DEVICE explicit LineWeights(const TapWeights& weights) {
    uint32_t rounded[4];
    for (int i = 0; i < 4; ++i) rounded[i] = static_cast<uint32_t>(weights.weight[i] + 128);
    first = permuted(rounded[0], rounded[1], 0x7632);
    last = permuted(rounded[2], rounded[3], 0x7632);
    low = permuted(permuted(rounded[0], rounded[1], 0x0051), permuted(rounded[2], rounded[3], 0x0051), 0x5410);
  }

  // The sum of four taps, in units of 2**-22 levels.
  DEVICE int32_t sum(uint32_t taps) const {
    const int32_t high = dot2_high(last, taps, dot2_low(first, taps, 0));
    return static_cast<int32_t>(dot4(low, taps, 0)) + high * 256;
  }
};

// Whether `sum`, to which `error` has been added, was within it of a whole level.
DEVICE bool is_uncertain(int32_t sum, int32_t error) {
  constexpr int beyond = 32 - fraction_bits;
  return static_cast<uint32_t>(sum) << beyond < static_cast<uint32_t>(2 * error) << beyond;
}

struct FixedPixel {
  uint32_t pixel;
  bool certain;
};

DEVICE FixedPixel fixed_pixel(const FixedAffine& affine, const Groups& source, Filter filter, uint32_t fill, int32_t y,
                              int32_t x) {
  const int64_t at_x = affine.x.at(x, y), at_y = affine.y.at(x, y);
  const uint32_t dx = fraction_of(at_x), dy = fraction_of(at_y);
  FixedPixel result{fill, !affine.x.is_close(dx) && !affine.y.is_close(dy)};
  if (!is_below(nearest(at_x), source.width) || !is_below(nearest(at_y), source.height)) return result;
  const bool cubic = filter == Filter::bicubic;
  const TapWeights down(filter, dy);
  const LineWeights across(TapWeights(filter, dx));
  // The error counts from the start: where all taps are equal, a sum that is a little less is not cut off to less.
  const int64_t start = int64_t{affine.error} << 32;
  int64_t total[3] = {start, start, start};
  uint32_t centre[3], beside[3], others[3] = {0, 0, 0};  // a tap, and in which bits those of its row and others differ
  const int32_t column = whole(at_x) - 1;
  const uint32_t selector = 0x3210u + (column & 3) * 0x1111u;
  const Words4* first = source.near(whole(at_y) - 1, column >> 2);
  const int32_t stride = source.stride();
  const auto add = [&](int i) {
    const Words4* from = first + i * stride;
    const Words4 low = from[0], high = from[1];
    for (int c = 0; c < 3; ++c) {
      const uint32_t taps = permuted(low.word[c], high.word[c], selector);
      total[c] += int64_t{down.weight[i]} * across.sum(taps);
      if (i == 1) {
        centre[c] = permuted(taps, 0, 0x1111);
        beside[c] = taps ^ centre[c];
      } else {
        others[c] |= taps ^ centre[c];
      }
    }
  };
  add(1);
  add(2);
  if (cubic) {
    add(0);
    add(3);
  }
  const uint32_t columns = dx == 0 ? 0xFF00 : cubic ? 0xFFFFFFFF : 0xFFFF00, rows = dy == 0 ? 0 : columns;
  int32_t level[3];
  for (int c = 0; c < 3; ++c) {
    const auto sum = static_cast<int32_t>(total[c] >> 32);
    if (is_uncertain(sum, affine.error) && ((beside[c] & columns) | (others[c] & rows)) != 0)
      result.certain = false;
    level[c] = sum >> fraction_bits;
  }
  result.pixel = packed(level[0], level[1], packed(level[2], 0, 0));
  return result;
}

// By the image's blocks; `shared` is each block's. A warp makes four lines of eight pixels: turned, they are read from
// fewer lines than 32 pixels of a line.
DEVICE void affine_pixels(const Groups& source, const OpCall& call, FixedAffine& shared, uint8_t* image) {
  const int32_t height = source.height, width = source.width;
  const auto filter = static_cast<Filter>(call.filter);
  if (own_number() == 0) shared = fixed_affine(call.matrix, filter, height, width);
  __syncthreads();
  const FixedAffine fixed = shared;
  const uint32_t fill = pixel_of(call.fill[0], call.fill[1], call.fill[2]);
  const Team team = Team::of_image();
  const bool tiled = width % 8 == 0 && team.size % 32 == 0;
  const int32_t across = tiled ? 8 : 1, down = tiled ? 4 : 1, lanes = across * down, lane = team.number % lanes;
  for (Cells cell(width / across, {team.number / lanes, team.size / lanes}); down * cell.row < height; cell.next()) {
    const int32_t y = down * cell.row + lane / across, x = across * cell.column + lane % across;
    if (y >= height) continue;
    uint8_t* rgb = image + 3 * (int64_t{y} * width + x);
    if (call.fast) {
      real_pixel<float>(source, call, y, x, rgb);
      continue;
    }
    const FixedPixel made = fixed.usable ? fixed_pixel(fixed, source, filter, fill, y, x) : FixedPixel{};
    if (made.certain)
      for (int c = 0; c < 3; ++c) rgb[c] = static_cast<uint8_t>(level_of(made.pixel, c));
    else
      exact_pixel(source, &call, y, x, rgb);
  }
}

}  // namespace deit::cuda
