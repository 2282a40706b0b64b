// Crop, resize and flip of one image by CUDA blocks: Pillow's two passes as products of matrices of bytes, exact.
//
// A block makes a tile of the output. Columns of it, 16 together, are a product of their weights with the pixels of 16
// source lines; the results, rounded to a byte, go into the strip, where the source lines of a column lie side by side.
// Output lines, 8 together, are a product of the strip with their weights. A weight, of 22 bits, is three bytes, so there
// are three products, whose sums are put together.
//
// An image that shrinks by more than about 2.5 reads more source pixels than fit here: resize_band.cuh makes it.
#pragma once

#include <cstdint>

#include "../arithmetic/exact_math.h"
#include "matrix.cuh"
#include "resize_source.cuh"

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
  static constexpr int32_t lines_at_once = 16;                           // source lines that are resized together
  static constexpr int32_t line_words = 76;                              // of a channel: 304 source columns at most
  static constexpr int32_t channel_words = lines_at_once * line_words + 8;
  static constexpr int32_t line_bytes = divided_up(15 + 12 * line_words + 4, 16) * 16;
  static constexpr int32_t strip_lines = 112, strip_stride = strip_lines / 4 + 1;
  static constexpr int32_t strip_rows = 3 * TileColumns::outputs;

  ResizeSource source;
  TileColumns columns;
  TileLines lines;
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
  // Behind this sum, the last bit of the number is 2**-16: the 16 bits from there on are the fraction, then comes the integer.
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
template <typename TileAxis>
DEVICE double find_tile_taps(TileAxis& axis, const Axis of, int32_t after, int32_t output, double* weights,
                             int32_t stride) {
  const Taps taps = of.taps(reflect(axis.window + smaller(output, axis.count - 1), after));
  axis.first[output] = taps.first;
  axis.end[output] = taps.first + taps.count;
  return of.filter == Filter::bicubic ? store_taps<Filter::bicubic>(of, taps, weights, stride)
                                      : store_taps<Filter::bilinear>(of, taps, weights, stride);
}

// An output's weights as bytes, and its tile's span.
template <typename TileAxis>
DEVICE void store_tile_weights(TileAxis& axis, int32_t output, double total, const double* weights, int32_t stride,
                               uint32_t* planes) {
  const int32_t tile = output / TileAxis::together;
  const int32_t *firsts = axis.first + tile * TileAxis::together, *ends = axis.end + tile * TileAxis::together;
  int32_t begin = firsts[0], end = ends[0];
  for (int32_t i = 1; i < TileAxis::together; ++i) {
    begin = smaller(begin, firsts[i]);
    end = larger(end, ends[i]);
  }
  begin &= ~3;
  if (output % TileAxis::together == 0) axis.span[tile] = {begin, end};
  auto* bytes = reinterpret_cast<uint8_t*>(planes) + output * TileAxis::depth;
  const int32_t from = axis.first[output] - begin, swizzle = TileAxis::swizzle(output);
  const int32_t count = axis.end[output] - axis.first[output];
  const double steps = (1 << precision) / (total != 0.0 ? total : 1.0);
#pragma unroll 1
  for (int32_t tap = 0; tap < count; ++tap) {
    const int32_t weight = fixed_point_of(weights[tap * stride], total, steps);
    for (int plane = 0; plane < weight_planes; ++plane)
      bytes[4 * plane * TileAxis::plane_words + ((from + tap) ^ swizzle)] = static_cast<uint8_t>(weight >> 8 * plane);
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

// The weighed sums of bytes. add(plane, addend, sum) adds the products with a plane of the weights.
struct Levels {
  int32_t sum[4];

  template <typename Add>
  DEVICE explicit Levels(const Add& add) {
    constexpr int32_t zero[4] = {}, half[4] = {one_half, one_half, one_half, one_half};
    int32_t low[4], middle[4], high[4];
    add(0, half, low);
    add(1, zero, middle);
    add(2, zero, high);
    for (int i = 0; i < 4; ++i) sum[i] = ((high[i] * 256 + middle[i]) * 256 + low[i]) >> precision;
  }
  DEVICE int32_t operator[](int i) const { return sum[i]; }  // not yet clipped
};

DEVICE uint32_t packed_levels(int32_t first, int32_t second, int32_t third, int32_t fourth) {
  return packed(first, second, packed(third, fourth, 0));
}

// The weights of a tile of 16 columns: `steps` times 32 source columns.
template <int steps>
struct ColumnWeights {
  Left plane[weight_planes][steps];

  DEVICE ColumnWeights(const uint32_t* weights, int32_t tile) {
    for (int i = 0; i < weight_planes; ++i)
      for (int step = 0; step < steps; ++step)
        plane[i][step] = Left([=](int32_t lane, int word) {
          const uint32_t column = TileColumns::together * tile + group_of(lane) + 8 * (word % 2);
          const uint32_t place = (32 * step + 4 * place_of(lane) + 16 * (word / 2)) ^ TileColumns::swizzle(column);
          return weights[i * TileColumns::plane_words + (column * TileColumns::depth + place) / 4];
        });
  }

  // sum = addend + the products of a plane.
  DEVICE void add(int number, const Right (&pixels)[steps], const int32_t (&addend)[4], int32_t (&sum)[4]) const {
    for (int step = 0; step < steps; ++step) {
      const int32_t(&before)[4] = step == 0 ? addend : static_cast<const int32_t(&)[4]>(sum);
      if (number == weight_planes - 1)
        multiply_add<true, false>(plane[number][step], pixels[step], before, sum);
      else
        multiply_add<false, false>(plane[number][step], pixels[step], before, sum);
    }
  }
};

// A channel of four pixels in three words.
DEVICE uint32_t channel_of(const uint32_t* word, int channel) {
  if (channel == 0) return permuted(permuted(word[0], word[1], 0x0630), word[2], 0x5210);
  if (channel == 1) return permuted(permuted(word[0], word[1], 0x0741), word[2], 0x6210);
  return permuted(permuted(word[0], word[1], 0x0052), word[2], 0x7410);
}

// Of 16 bytes some may lie outside the buffer [begin, end).
DEVICE_CALL void copy_what_is_inside(const uint8_t* from, TileShared* shared, int32_t to) {
  for (int i = 0; i < 16; ++i, ++from)
    if (shared->source.begin <= from && from < shared->source.end) shared->bytes[to + i] = *from;
}

// Where a warp's columns lie in the strip: those of this thread are the lane's group and the eighth column after it.
struct ColumnPlaces {
  uint32_t* strip;
  int32_t second_on;
  bool first_there, second_there;

  DEVICE ColumnPlaces(TileShared& shared, int32_t tile, int32_t lane) {
    const int32_t count = shared.columns.count, column = TileColumns::together * tile + group_of(lane);
    const bool flip = shared.source.row.flip;
    strip = shared.strip + 3 * (flip ? count - 1 - column : column) * TileShared::strip_stride + place_of(lane);
    second_on = (flip ? -8 : 8) * 3 * TileShared::strip_stride;
    first_there = column < count;
    second_there = column + 8 < count;
  }
};

// Eight columns of a source line: where their bytes and their pixels lie.
struct EightColumns {
  const uint32_t* from;
  uint32_t ahead;  // the first byte's place in its word
  uint32_t* to;

  // address: of the first byte of the line that is copied first.
  DEVICE EightColumns(TileShared& shared, const Cells& cell, uint32_t address, int32_t stride) {
    const uint32_t at = address + cell.row * stride;
    ahead = at % 4;
    from = reinterpret_cast<const uint32_t*>(shared.bytes + cell.row * TileShared::line_bytes + 24 * cell.column +
                                             (at & 12));
    to = shared.pixels + TileShared::line_place(cell.row) + 2 * cell.column;
  }

  DEVICE void unpack() const {
    uint32_t word[6];
    for (int i = 0; i < 6; ++i) word[i] = word_between(from[i], from[i + 1], ahead);
    for (int c = 0; c < 3; ++c)
      *reinterpret_cast<Words2*>(to + c * TileShared::channel_words) = {{channel_of(word, c), channel_of(word + 3, c)}};
  }
};

// A block's work, by its threads.
struct ResizeTile {
  static constexpr int32_t copies = threads / warp_lanes - 1;  // the warp that copies while others resize columns
  TileShared& shared;
  int32_t warp, lane;  // of this thread

  DEVICE explicit ResizeTile(TileShared& shared)
      : shared(shared), warp(threadIdx.x / warp_lanes), lane(threadIdx.x % warp_lanes) {}

  // Copies `count` source lines, the first of which begins at `line`, by chunks of 16 bytes, at most 64 a line. By one
  // warp; they arrive by its wait_for_copies.
  template <bool inside>
  DEVICE void copy_lines(const uint8_t* line, int32_t stride, int32_t count, int32_t chunks) const {
#pragma unroll 4
    for (int32_t i = 0, to = 16 * lane; i < count; ++i, line += stride, to += TileShared::line_bytes) {
      const auto* from = reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(line) / 16 * 16) + 16 * lane;
      for (int32_t chunk = 0; chunk < 2 * warp_lanes; chunk += warp_lanes) {
        if (chunk + lane >= chunks) continue;
        if (inside)
          copy_sixteen(from + 16 * chunk, shared.bytes + to + 16 * chunk);
        else
          copy_what_is_inside(from + 16 * chunk, &shared, to + 16 * chunk);
      }
    }
  }
  DEVICE void copy_lines(const uint8_t* line, int32_t stride, int32_t count, int32_t chunks) const {
    if (shared.source.words_inside)
      copy_lines<true>(line, stride, count, chunks);
    else
      copy_lines<false>(line, stride, count, chunks);
  }

  // A warp's tile of columns of the unpacked lines, whose pixels begin at `pixels`, into the strip as its lines
  // [4 * word, 4 * word + lines_at_once).
  template <int steps>
  DEVICE void resize_columns(const ColumnWeights<steps>& weights, const ColumnPlaces& places, const uint32_t* pixels,
                             int32_t word) const {
    for (int c = 0; c < 3; ++c) {
      const auto levels = [&](int part) {  // of lines 0, 1, 4, 5 and so on; of lines 2, 3, 6, 7 and so on
        Right right[steps];
        for (int step = 0; step < steps; ++step)
          right[step] = Right([=](int32_t lane, int i) {
            const int32_t line = (lane >> 3) * 4 + (group_of(lane) & 1) + 2 * part;
            return pixels[c * TileShared::channel_words + TileShared::line_place(line) + 8 * step + place_of(lane) + 4 * i];
          });
        return Levels([&](int plane, const int32_t(&addend)[4], int32_t(&sum)[4]) {
          weights.add(plane, right, addend, sum);
        });
      };
      const Levels even = levels(0), odd = levels(1);
      uint32_t* to = places.strip + c * TileShared::strip_stride + word;
      const uint32_t first = packed_levels(even[0], even[1], odd[0], odd[1]);
      const uint32_t second = packed_levels(even[2], even[3], odd[2], odd[3]);
      if (places.first_there) *to = first;
      if (places.second_there) to[places.second_on] = second;
    }
  }

  // A tile of output lines from the strip, whose first line is `begin`.
  template <bool words_together>  // whether words may be stored
  DEVICE void make_lines(int32_t tile, int32_t begin, uint8_t* output, int32_t line_bytes) const {
    const auto load = [&](int plane) {
      const uint32_t* weights = shared.line_weights() + plane * TileLines::plane_words;
      return Right([=](int32_t lane, int i) {
        const uint32_t line = TileLines::together * tile + group_of(lane);
        const uint32_t place = (4 * place_of(lane) + 16 * i) ^ TileLines::swizzle(line);
        return weights[(line * TileLines::depth + place) / 4];
      });
    };
    const Right weights[weight_planes] = {load(0), load(1), load(2)};
    const int32_t y = TileLines::together * tile + 2 * place_of(lane), row = 4 * group_of(lane), rows = 3 * shared.columns.count;
    const int32_t there[2] = {y < shared.lines.count ? rows - row : 0, y + 1 < shared.lines.count ? rows - row : 0};
    const uint32_t* strip = shared.strip + static_cast<uint32_t>(shared.lines.span[tile].begin - begin) / 4;
    uint8_t *to = output + y * line_bytes + row, *next = to + line_bytes;
#pragma unroll 2
    for (int32_t first = 0; first < rows; first += 32) {  // 32 rows, of each lane four, of two lines
      const auto levels = [&](int pair) {
        const Left left([=](int32_t lane, int i) {  // of the last rows some are not there, and are not stored
          const int32_t row = 4 * group_of(lane) + 2 * pair + i % 2;
          return strip[row * TileShared::strip_stride + place_of(lane) + 4 * (i / 2)];
        });
        return Levels([&](int plane, const int32_t(&addend)[4], int32_t(&sum)[4]) {
          if (plane == weight_planes - 1)
            multiply_add<false, true>(left, weights[plane], addend, sum);
          else
            multiply_add<false, false>(left, weights[plane], addend, sum);
        });
      };
      const Levels even = levels(0), odd = levels(1);
      for (int line = 0; line < 2; ++line) {
        const uint32_t four = packed_levels(even[line], even[2 + line], odd[line], odd[2 + line]);
        uint8_t* at = line ? next : to;
        if (words_together) {
          if (first < there[line]) *reinterpret_cast<uint32_t*>(at) = four;
        } else {
          for (int k = 0; k < 4 && first + k < there[line]; ++k) at[k] = static_cast<uint8_t>(four >> 8 * k);
        }
      }
      strip += 32 * TileShared::strip_stride;
      to += 32;
      next += 32;
    }
  }

  // By all threads, behind a barrier: the tables of weights.
  DEVICE void find_weights() const {
    const auto clear = [](uint32_t* words, int32_t count) {
#pragma unroll
      for (int32_t i = threadIdx.x; i < count / 4; i += threads) reinterpret_cast<Words4*>(words)[i] = Words4{};
    };
    clear(shared.tables.column_weights, TileColumns::words);
    clear(shared.line_weights(), TileLines::words);
    // Columns and lines by different warps.
    const int32_t columns = TileColumns::outputs, from = divided_up(columns, warp_lanes) * warp_lanes;
    const int32_t thread = threadIdx.x, number = thread < columns ? thread : columns + thread - from;
    const bool mine = thread < columns || (thread >= from && thread < from + TileLines::outputs);
    const double total = mine ? find_output(&shared, number) : 0.0;
    __syncthreads();
    if (mine) store_output(&shared, number, total);
    __syncthreads();
  }

  // The whole tile; `output` is its first pixel.
  DEVICE void run(uint8_t* output, int32_t line_bytes) const {
    find_weights();
    bool once = true;
    for (const Span& span : shared.columns.span) once = once && span.end - span.begin <= 32;
    if (once)
      make_tile<1>(output, line_bytes);
    else
      make_tile<2>(output, line_bytes);
  }

  // steps: how often a tile of columns reads 32 source columns.
  template <int steps>
  DEVICE void make_tile(uint8_t* output, int32_t line_bytes) const {
    const int32_t column_tiles = shared.columns.used_tiles(), line_tiles = shared.lines.used_tiles();
    const Span window = shared.columns.spans(), all_lines = shared.lines.spans();
    const Cells cell(divided_up(window.end - window.begin, 8));
    const int32_t chunks = divided_up(15 + 24 * cell.columns + 4, 16);
    const int32_t mine = smaller(warp, column_tiles - 1), stride = 3 * shared.source.row.width;
    const ColumnWeights<steps> weights(shared.tables.column_weights, mine);
    const ColumnPlaces places(shared, warp, lane);
    const uint32_t* pixels = shared.pixels + static_cast<uint32_t>(shared.columns.span[mine].begin - window.begin) / 4;
    const bool words_together = line_bytes % 4 == 0 && reinterpret_cast<uintptr_t>(output) % 4 == 0;
    for (int32_t from = 0, to; from < line_tiles; from = to) {
      Span lines = all_lines;
      to = line_tiles;
      if (lines.end - lines.begin > TileShared::strip_lines) {  // as many tiles as the strip has room for
        lines = shared.lines.span[from];
        for (to = from + 1; to < line_tiles; ++to) {
          const Span more = lines.with(shared.lines.span[to]);
          if (more.end - more.begin > TileShared::strip_lines) break;
          lines = more;
        }
      }
      constexpr int32_t together = TileShared::lines_at_once;
      const uint8_t* line = shared.source.crop + 3 * window.begin + lines.begin * int64_t{stride};
      const auto address = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(line));
      const EightColumns first(shared, cell, address, stride);  // of this thread, in every `together` lines
      if (warp == copies) copy_lines(line, stride, smaller(together, lines.end - lines.begin), chunks);
      for (int32_t left = lines.end - lines.begin, word = 0; left > 0; left -= together, word += together / 4) {
        wait_for_copies();
        __syncthreads();
        const int32_t count = smaller(together, left);
        if (cell.row < count) first.unpack();
        Cells next = cell;
        for (next.next(); next.row < count; next.next()) EightColumns(shared, next, address, stride).unpack();
        __syncthreads();
        line += together * stride;
        if (warp == copies && left > together) copy_lines(line, stride, smaller(together, left - together), chunks);
        if (warp < column_tiles) resize_columns(weights, places, pixels, word);
      }
      __syncthreads();
      if (warp >= to - from) continue;
      if (words_together)
        make_lines<true>(from + warp, lines.begin, output, line_bytes);
      else
        make_lines<false>(from + warp, lines.begin, output, line_bytes);
    }
  }
};

}  // namespace deit::cuda
