// The weights of a tile of the output as bytes, for its products of matrices, and the tile's shared memory.
#pragma once

#include <cstdint>

#include "../../arithmetic/exact_math.h"
#include "../matrix.cuh"
#include "source.cuh"

namespace deit::cuda {

constexpr int32_t weight_planes = 3;  // the bytes of a weight, the lowest first; the last one is signed

// Source pixels [begin, end) of an axis that some outputs read.
struct Span {
  int32_t begin, end;

  DEVICE Span with(const Span& other) const { return {smaller(begin, other.begin), larger(end, other.end)}; }
};

// Outputs along an axis and their weights: `tiles` tiles of `together` outputs. A tile reads at most `depth` source
// pixels, of which the first is at a multiple of 4 of the axis.
template <int32_t together_, int32_t tiles_, int32_t depth_>
struct TileAxis {
  static constexpr int32_t together = together_, tiles = tiles_, depth = depth_, outputs = together * tiles;
  static constexpr int32_t plane_words = outputs * depth / 4, words = weight_planes * plane_words;

  // What the place of an output's byte is xor-ed with, so that the outputs that are read together lie in different banks.
  DEVICE static int32_t swizzle(uint32_t output) { return output / (128 / depth) * 16 % depth; }

  int32_t count, window;  // outputs, and the first one's place on the resized axis
  alignas(16) int32_t first[outputs];
  alignas(16) int32_t end[outputs];
  Span span[tiles];

  DEVICE int32_t used_tiles() const { return divided_up(count, together); }

  // Of all tiles. Outputs beyond the last one read what it reads.
  DEVICE Span spans() const {
    Span all = span[0];
    for (int32_t tile = 1; tile < tiles; ++tile) all = all.with(span[tile]);
    return all;
  }

  // Whether a tile's outputs read no more than `depth` pixels and `most_taps` each, and all outputs at most `window`.
  DEVICE static bool fits(const Axis& axis, int32_t window) {
    const double taps = 2.0 * axis.support + 1.0;
    return taps <= most_taps && (together - 1) * axis.scale + taps + 3.0 <= depth &&
           (outputs - 1) * axis.scale + taps + 3.0 <= window;
  }
  static constexpr int32_t most_taps = 12;
};
using TileColumns = TileAxis<16, 7, 64>;
using TileLines = TileAxis<8, 7, 32>;

// What the weights are made from, and those of the columns, which their warps take into registers.
struct WeightTables {
  alignas(16) uint32_t column_weights[TileColumns::words];
  double weights[TileColumns::most_taps][TileColumns::outputs + TileLines::outputs];  // not yet normalised
};

// A block's shared memory.
struct TileShared {
  static constexpr int32_t lines_at_once = 16;  // source lines that are resized together
  static constexpr int32_t line_words = 76;     // of a channel: 304 source columns at most
  static constexpr int32_t channel_words = lines_at_once * line_words + 8;
  static constexpr int32_t line_bytes = divided_up(15 + 12 * line_words + 4, 16) * 16;
  static constexpr int32_t strip_lines = 112, strip_stride = strip_lines / 4 + 1;
  static constexpr int32_t strip_rows = 3 * TileColumns::outputs;

  ResizeSource source;
  uint8_t* output;  // the tile's first pixel
  int32_t output_stride;  // bytes from a line to the next
  TileColumns columns;
  TileLines lines;
  Span window, all_lines;  // source columns and lines that are read
  int32_t cells;           // how many times eight columns of the window
  bool once;               // whether no tile of columns reads more than 32
  alignas(16) uint8_t bytes[lines_at_once * line_bytes];  // source lines as they are, from a multiple of 16 on
  // The same: four columns in a word, [channel][line][column / 4], and what is read beyond the last line.
  alignas(16) uint32_t pixels[3 * channel_words + 16];
  union {
    // Four source lines in a word, [column][channel][line / 4]; then the lines' weights, [plane][line][depth / 4], which
    // are read as lines too, to no effect.
    uint32_t strip[strip_rows * strip_stride + TileLines::words];
    WeightTables tables;  // until the first lines are resized
  };

  DEVICE static bool fits(const ResizeSource& source) {
    return TileColumns::fits(source.across, 4 * line_words) && TileLines::fits(source.down, 1 << 30);
  }

  // By one thread, behind the spans of the tiles.
  DEVICE void find_window() {
    window = columns.spans();
    all_lines = lines.spans();
    cells = divided_up(window.end - window.begin, 8);
    once = true;
    for (const Span& span : columns.span) once = once && span.end - span.begin <= 32;
  }

  // The first byte of the window in a source line.
  DEVICE const uint8_t* first_byte(int32_t line) const {
    return source.crop + 3 * (window.begin + line * int64_t{source.row.width});
  }

  DEVICE uint32_t* line_weights() { return strip + strip_rows * strip_stride; }

  // Where a source line's pixels lie. Lines 0, 1, 4, 5, 8, 9, 12 and 13, which are multiplied together, and lines 2, 3,
  // 6 and so on, lie in different banks.
  DEVICE static int32_t line_place(int32_t line) { return line * line_words + (line & 8); }
};
static_assert(sizeof(WeightTables) <= 4 * TileShared::strip_rows * TileShared::strip_stride);
static_assert(TileColumns::tiles < threads / warp_lanes && TileLines::tiles <= threads / warp_lanes);
static_assert(TileShared::strip_lines % TileShared::lines_at_once == 0);

// fixed_point(weight, total), of which `steps` is 2**precision / total. The product errs by less than 2**-28, so where it
// does not lie within 2**-15 of halfway between two integers, the nearest one is the answer.
DEVICE_CALL int32_t divided_fixed_point(double weight, double total) { return fixed_point(weight, total); }
DEVICE int32_t fixed_point_of(double weight, double total, double steps) {
  // The last bit of this sum is worth 2**-16, so 16 bits are the fraction and those above them the integer.
  const uint64_t bits = to_bits(weight * steps + (0x1.8p36 + 0.5));
  const uint32_t fraction = bits & 0xFFFF;
  if (fraction - 2 > 0xFFFF - 4) return divided_fixed_point(weight, total);
  return static_cast<int32_t>(bits >> 16);
}

// Weights as they are, and their sum.
template <Filter filter>
DEVICE double store_taps(const Axis& axis, const Taps& taps, double* weights, int32_t stride) {
  double total = 0.0;
#pragma unroll 1
  for (int32_t at = taps.first, end = taps.first + taps.count; at < end; ++at, weights += stride) {
    const double weight = axis.weight<filter>(taps, at);
    *weights = weight;
    total += weight;
  }
  return total;
}

// Float64 is in functions that are called, not inlined: else it would take registers from the loops over pixels.
// An output's taps, and its weights as they are.
template <typename Outputs>
DEVICE double find_tile_taps(Outputs& axis, const Axis of, int32_t after, int32_t output, double* weights,
                             int32_t stride) {
  const Taps taps = of.taps(reflect(axis.window + smaller(output, axis.count - 1), after));
  axis.first[output] = taps.first;
  axis.end[output] = taps.first + taps.count;
  return of.filter == Filter::bicubic ? store_taps<Filter::bicubic>(of, taps, weights, stride)
                                      : store_taps<Filter::bilinear>(of, taps, weights, stride);
}

// An output's weights as bytes, and its tile's span.
template <typename Outputs>
DEVICE void store_tile_weights(Outputs& axis, int32_t output, double total, const double* weights, int32_t stride,
                               uint32_t* planes) {
  const int32_t tile = output / Outputs::together;
  const int32_t *firsts = axis.first + tile * Outputs::together, *ends = axis.end + tile * Outputs::together;
  int32_t begin = firsts[0], end = ends[0];
  for (int32_t i = 1; i < Outputs::together; ++i) {
    begin = smaller(begin, firsts[i]);
    end = larger(end, ends[i]);
  }
  begin &= ~3;
  if (output % Outputs::together == 0) axis.span[tile] = {begin, end};
  auto* bytes = reinterpret_cast<uint8_t*>(planes) + output * Outputs::depth;
  const int32_t from = axis.first[output] - begin, swizzle = Outputs::swizzle(output);
  const int32_t count = axis.end[output] - axis.first[output];
  const double steps = (1 << precision) / (total != 0.0 ? total : 1.0);
#pragma unroll 1
  for (int32_t tap = 0; tap < count; ++tap) {
    const int32_t weight = fixed_point_of(weights[tap * stride], total, steps);
    for (int plane = 0; plane < weight_planes; ++plane)
      bytes[4 * plane * Outputs::plane_words + ((from + tap) ^ swizzle)] = static_cast<uint8_t>(weight >> 8 * plane);
  }
}

DEVICE_CALL double find_output(TileShared* shared, int32_t number) {
  constexpr int32_t columns = TileColumns::outputs, stride = columns + TileLines::outputs;
  const ResizeSource& source = shared->source;
  double* weights = &shared->tables.weights[0][number];
  return number < columns
             ? find_tile_taps(shared->columns, source.across, source.row.resized_width, number, weights, stride)
             : find_tile_taps(shared->lines, source.down, source.row.resized_height, number - columns, weights, stride);
}

DEVICE_CALL void store_output(TileShared* shared, int32_t number, double total) {
  constexpr int32_t columns = TileColumns::outputs, stride = columns + TileLines::outputs;
  const double* weights = &shared->tables.weights[0][number];
  if (number < columns)
    store_tile_weights(shared->columns, number, total, weights, stride, shared->tables.column_weights);
  else
    store_tile_weights(shared->lines, number - columns, total, weights, stride, shared->line_weights());
}

}  // namespace deit::cuda
