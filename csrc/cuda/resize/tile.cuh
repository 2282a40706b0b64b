// Crop, resize and flip of one image by CUDA blocks: Pillow's two passes as products of matrices of bytes, exact.
//
// A block makes a tile of the output. Columns of it, 16 together, are a product of their weights with the pixels of 16
// source lines; the results, rounded to a byte, go into the strip, where the source lines of a column lie side by side.
// Output lines, 8 together, are a product of the strip with their weights. A weight, of 22 bits, is three bytes, so there
// are three products, whose sums are put together.
//
// An image that shrinks by more than about 2.5 reads more source pixels than fit here: band.cuh makes it.
#pragma once

#include <cstdint>

#include "../bytes.cuh"
#include "weights.cuh"

namespace deit::cuda {

// The weighed sums of bytes. add(plane, addend, sum) adds the products with a plane of the weights.
struct WeighedSums {
  int32_t sum[4];

  template <typename Add>
  DEVICE explicit WeighedSums(const Add& add) {
    constexpr int32_t zero[4] = {}, half[4] = {one_half, one_half, one_half, one_half};
    int32_t low[4], middle[4], high[4];
    add(0, half, low);
    add(1, zero, middle);
    add(2, zero, high);
    for (int i = 0; i < 4; ++i) sum[i] = ((high[i] * 256 + middle[i]) * 256 + low[i]) >> precision;
  }
  DEVICE int32_t operator[](int i) const { return sum[i]; }  // not yet clipped
};

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

  // The `number`-th of lines of `cells` times eight columns; `line` is the first byte of those that are copied together.
  DEVICE EightColumns(TileShared& shared, int32_t cells, int32_t number, const uint8_t* line) {
    const int32_t row = quotient(number, cells), column = number - row * cells;
    const uint32_t at = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(line)) + 3u * row * shared.source.row.width;
    ahead = at % 4;
    from = reinterpret_cast<const uint32_t*>(shared.bytes + row * TileShared::line_bytes + 24 * column + (at & 12));
    to = shared.pixels + TileShared::line_place(row) + 2 * column;
  }

  DEVICE void unpack() const {
    uint32_t word[6];
    for (int i = 0; i < 6; ++i) word[i] = word_between(from[i], from[i + 1], ahead);
    const Planes first = planes_of(word[0], word[1], word[2]), second = planes_of(word[3], word[4], word[5]);
    for (int c = 0; c < 3; ++c)
      *reinterpret_cast<Words2*>(to + c * TileShared::channel_words) = {{first.channel[c], second.channel[c]}};
  }
};

// A block's work, by its threads.
struct ResizeTile {
  static constexpr int32_t copying_warp = threads / warp_lanes - 1;  // the others resize columns meanwhile
  TileShared& shared;
  int32_t thread, warp, lane;  // of this thread

  DEVICE explicit ResizeTile(TileShared& shared)
      : shared(shared), thread(own_number()), warp(thread / warp_lanes), lane(thread % warp_lanes) {}

  // Copies the source lines [line, line + count) by chunks of 16 bytes, at most 64 a line. By one warp; they arrive by its
  // wait_for_copies.
  template <bool inside>  // whether all chunks lie in the buffer
  DEVICE void copy_lines(int32_t line, int32_t count) const {
    const ResizeSource& source = shared.source;
    const int32_t stride = 3 * source.row.width, chunks = divided_up(15 + 24 * shared.cells + 4, 16);
    const uint8_t* bytes = shared.first_byte(line);
#pragma unroll 4
    for (int32_t i = 0, to = 16 * lane; i < count; ++i, bytes += stride, to += TileShared::line_bytes) {
      const auto* first = reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(bytes) / 16 * 16) + 16 * lane;
      for (int32_t chunk = 0; chunk < 2 * warp_lanes; chunk += warp_lanes) {
        if (chunk + lane >= chunks) continue;
        const uint8_t* from = first + 16 * chunk;
        if (inside || (source.begin <= from && from + 16 <= source.end))
          copy_sixteen(from, shared.bytes + to + 16 * chunk);
        else
          copy_what_is_inside(from, &shared, to + 16 * chunk);
      }
    }
  }
  DEVICE void copy_lines(int32_t line, int32_t count) const {
    if (shared.source.words_inside)
      copy_lines<true>(line, count);
    else
      copy_lines<false>(line, count);
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
        return WeighedSums([&](int plane, const int32_t(&addend)[4], int32_t(&sum)[4]) {
          weights.add(plane, right, addend, sum);
        });
      };
      const WeighedSums even = levels(0), odd = levels(1);
      uint32_t* to = places.strip + c * TileShared::strip_stride + word;
      const uint32_t first = four_levels(even[0], even[1], odd[0], odd[1]);
      const uint32_t second = four_levels(even[2], even[3], odd[2], odd[3]);
      if (places.first_there) *to = first;
      if (places.second_there) to[places.second_on] = second;
    }
  }

  // A tile of output lines from the strip, whose first line is `begin`.
  template <bool words_together>  // whether words may be stored
  DEVICE void make_lines(int32_t tile, int32_t begin) const {
    const auto load = [&](int plane) {
      const uint32_t* weights = shared.line_weights() + plane * TileLines::plane_words;
      return Right([=](int32_t lane, int i) {
        const uint32_t line = TileLines::together * tile + group_of(lane);
        const uint32_t place = (4 * place_of(lane) + 16 * i) ^ TileLines::swizzle(line);
        return weights[(line * TileLines::depth + place) / 4];
      });
    };
    const Right weights[weight_planes] = {load(0), load(1), load(2)};
    const int32_t y = TileLines::together * tile + 2 * place_of(lane), row = 4 * group_of(lane);
    const int32_t rows = 3 * shared.columns.count;
    const int32_t there[2] = {y < shared.lines.count ? rows - row : 0, y + 1 < shared.lines.count ? rows - row : 0};
    const uint32_t* strip = shared.strip + static_cast<uint32_t>(shared.lines.span[tile].begin - begin) / 4;
    uint8_t *to = shared.output + y * shared.output_stride + row, *next = to + shared.output_stride;
#pragma unroll 2
    for (int32_t first = 0; first < rows; first += 32) {  // 32 rows, of each lane four, of two lines
      const auto levels = [&](int pair) {
        const Left left([=](int32_t lane, int i) {  // of the last rows some are not there, and are not stored
          const int32_t row = 4 * group_of(lane) + 2 * pair + i % 2;
          return strip[row * TileShared::strip_stride + place_of(lane) + 4 * (i / 2)];
        });
        return WeighedSums([&](int plane, const int32_t(&addend)[4], int32_t(&sum)[4]) {
          if (plane == weight_planes - 1)
            multiply_add<false, true>(left, weights[plane], addend, sum);
          else
            multiply_add<false, false>(left, weights[plane], addend, sum);
        });
      };
      const WeighedSums even = levels(0), odd = levels(1);
      for (int line = 0; line < 2; ++line) {
        const uint32_t four = four_levels(even[line], even[2 + line], odd[line], odd[2 + line]);
        uint8_t* at = line ? next : to;
        if (words_together) {
          if (first < there[line]) store_global(four, at);
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
    const auto clear = [this](uint32_t* words, int32_t count) {
#pragma unroll
      for (int32_t i = thread; i < count / 4; i += threads) reinterpret_cast<Words4*>(words)[i] = Words4{};
    };
    clear(shared.tables.column_weights, TileColumns::words);
    clear(shared.line_weights(), TileLines::words);
    // Columns and lines by different warps.
    const int32_t columns = TileColumns::outputs, from = divided_up(columns, warp_lanes) * warp_lanes;
    const int32_t number = thread < columns ? thread : columns + thread - from;
    const bool mine = thread < columns || (thread >= from && thread < from + TileLines::outputs);
    const double total = mine ? find_output(&shared, number) : 0.0;
    __syncthreads();
    if (mine) store_output(&shared, number, total);
    __syncthreads();
    if (thread == 0) shared.find_window();
    __syncthreads();
  }

  DEVICE void run() const {
    find_weights();
    if (shared.once)
      make_tile<1>();
    else
      make_tile<2>();
  }

  // steps: how often a tile of columns reads 32 source columns.
  template <int steps>
  DEVICE void make_tile() const {
    const int32_t column_tiles = shared.columns.used_tiles(), line_tiles = shared.lines.used_tiles();
    const int32_t mine = smaller(warp, column_tiles - 1);
    const ColumnWeights<steps> weights(shared.tables.column_weights, mine);
    const ColumnPlaces places(shared, mine, lane);
    const uint32_t* pixels =
        shared.pixels + static_cast<uint32_t>(shared.columns.span[mine].begin - shared.window.begin) / 4;
    const int32_t cells = shared.cells, row = quotient(thread, cells);  // of a line; this thread's first line
    for (int32_t from = 0, to; from < line_tiles; from = to) {
      Span lines = shared.all_lines;
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
      // Of this thread; the same of every `together` lines, since so many begin at a multiple of 16 bytes from each other.
      const EightColumns first(shared, cells, thread, shared.first_byte(lines.begin));
      if (warp == copying_warp) copy_lines(lines.begin, smaller(together, lines.end - lines.begin));
      for (int32_t line = lines.begin, word = 0; line < lines.end; line += together, word += together / 4) {
        wait_for_copies();
        __syncthreads();
        const int32_t left = lines.end - line, count = smaller(together, left);
        if (row < count) first.unpack();
        // More than one for each thread: the last warps, which have least to do, begin.
        for (int32_t number = 2 * threads - 1 - thread; number < count * cells; number += threads)
          EightColumns(shared, cells, number, shared.first_byte(line)).unpack();
        __syncthreads();
        if (warp == copying_warp && left > together) copy_lines(line + together, smaller(together, left - together));
        if (warp < column_tiles) resize_columns(weights, places, pixels, word);
      }
      __syncthreads();
      if (warp >= to - from) continue;
      if (shared.output_stride % 4 == 0 && reinterpret_cast<uintptr_t>(shared.output) % 4 == 0)
        make_lines<true>(from + warp, lines.begin);
      else
        make_lines<false>(from + warp, lines.begin);
    }
  }
};

}  // namespace deit::cuda
