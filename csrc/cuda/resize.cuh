// Crop, resize and flip of one image by CUDA blocks: Pillow's two passes over the arithmetic of resample.h.
//
// A block makes a band of output lines. First it weighs the taps of all its columns and lines, once. Then it walks down
// the source: some lines are unpacked into words of a pixel, each thread resizes a column of them, and the results go
// into the strip, a ring of lines. When the strip holds all that the next few output lines read, these are made.
#pragma once

#include <cstdint>

#include "../arithmetic/plan.h"
#include "../arithmetic/resample.h"
#include "block.cuh"

namespace deit::cuda {

constexpr int32_t lines_of_band = 56;     // 4 bands at 224 pixels; a fifteenth of the source lines is resized twice
constexpr int32_t lines_at_once = 8;      // source lines that share a weight; output lines made between two barriers
constexpr int32_t columns_at_once = 256;  // source columns unpacked between two barriers
constexpr int32_t vector_bytes = 8;       // values of an output line that a thread makes at once

// The shared memory of a block, in bytes from its beginning: 47 KB at 224 pixels, 97 KB at 1024.
struct ResizeShared {
  int32_t size;

  // Weights kept of an output: all of them as long as bicubic shrinks to 224 pixels by no more than 2.25.
  HOST_DEVICE int32_t kept() const { return smaller(larger(2240 / size, 8), 32); }
  HOST_DEVICE int32_t line_bytes() const { return divided_up(3 * size, vector_bytes) * vector_bytes; }
  HOST_DEVICE int32_t strip_lines() const {  // a power of two
    return 32 * line_bytes() <= 22528 ? 32 : 16 * line_bytes() <= 22528 ? 16 : 8;
  }

  HOST_DEVICE int32_t pixels() const { return 0; }
  HOST_DEVICE int32_t columns() const { return pixels() + 4 * lines_at_once * columns_at_once; }
  HOST_DEVICE int32_t lines() const { return columns() + (16 + 4 * kept()) * size; }
  HOST_DEVICE int32_t sums() const { return lines() + (16 + 4 * kept()) * lines_of_band; }
  HOST_DEVICE int32_t strip() const { return sums() + 4 * line_bytes(); }
  HOST_DEVICE int32_t bytes() const { return strip() + strip_lines() * line_bytes(); }
};

// What `outputs` outputs along one axis read: output i the source pixels [first[i], end[i]), with weights[tap][i]. When
// these are more than `kept`, only `kept` of them lie there at a time.
struct AxisTaps {
  int32_t before, after, window;  // of the axis, and the first output's place in it
  Filter filter;
  int32_t outputs, kept;
  double* total;
  int32_t *first, *end, *weights;

  DEVICE AxisTaps(int32_t before, int32_t after, int32_t window, Filter filter, int32_t outputs, int32_t kept,
                  unsigned char* memory)
      : before(before), after(after), window(window), filter(filter), outputs(outputs), kept(kept),
        total(reinterpret_cast<double*>(memory)), first(reinterpret_cast<int32_t*>(total + outputs)),
        end(first + outputs), weights(end + outputs) {}

  DEVICE int32_t place(int32_t output) const { return reflect(window + output, after); }
  DEVICE bool fits(int32_t output) const { return end[output] - first[output] <= kept; }
};

// The two functions with float64 are called, not inlined: it would take registers from the loops over pixels.
DEVICE_CALL void find_taps(int32_t before, int32_t after, Filter filter, int32_t place, double* total, int32_t* first,
                           int32_t* end) {
  const Axis axis(before, after, filter);
  const Taps taps = axis.taps(place);
  *total = axis.total(taps);
  *first = taps.first;
  *end = taps.first + taps.count;
}

// The weights of taps [from, from + count), as far as there are so many.
DEVICE_CALL void find_weights(int32_t before, int32_t after, Filter filter, int32_t place, double total, int32_t from,
                              int32_t count, int32_t* weights, int32_t stride) {
  const Axis axis(before, after, filter);
  const Taps taps = axis.taps(place);
  const int32_t to = smaller(from + count, taps.count);
#pragma unroll 1
  for (int32_t tap = from; tap < to; ++tap, weights += stride)
    *weights = fixed_point(axis.weight(taps, taps.first + tap), total);
}

DEVICE void find_taps(const AxisTaps& axis, int32_t output) {
  find_taps(axis.before, axis.after, axis.filter, axis.place(output), axis.total + output, axis.first + output,
            axis.end + output);
}

// Into the places [slot, slot + count).
DEVICE void find_weights(const AxisTaps& axis, int32_t output, int32_t from, int32_t count, int32_t slot) {
  find_weights(axis.before, axis.after, axis.filter, axis.place(output), axis.total[output], from, count,
               axis.weights + slot * axis.outputs + output, axis.outputs);
}

DEVICE void find_taps_and_weights(const AxisTaps& axis, int32_t output) {
  find_taps(axis, output);
  find_weights(axis, output, 0, axis.kept, 0);
}

// Four pixels from offset `at` of a buffer on; those behind the buffer are 0.
DEVICE Words4 load_pixels(const uint8_t* data, int64_t data_bytes, int64_t at) {
  if (at >= 3 && at + 16 <= data_bytes) {
    const uint32_t ahead = reinterpret_cast<uintptr_t>(data + at) % 4;
    const auto* words = reinterpret_cast<const uint32_t*>(data + at - ahead);
    const uint32_t word[4] = {words[0], words[1], words[2], words[3]};
    return four_pixels(word_between(word[0], word[1], ahead), word_between(word[1], word[2], ahead),
                       word_between(word[2], word[3], ahead));
  }
  Words4 pixels{};
  for (int i = 0; i < 4; ++i, at += 3)
    if (at + 3 <= data_bytes) pixels.word[i] = pixel_at(data + at);
  return pixels;
}

// The levels of sums into an output line, from its byte `place` on.
DEVICE void store_levels(const int32_t (&sum)[vector_bytes], int32_t line_bytes, int32_t place, uint8_t* line) {
  if (line_bytes % vector_bytes == 0) {
    Words2 levels{};
#pragma unroll
    for (int k = 0; k < vector_bytes; ++k) levels.word[k / 4] |= uint32_t{clip8(sum[k])} << (8 * (k % 4));
    *reinterpret_cast<Words2*>(line + place) = levels;
  } else {
#pragma unroll
    for (int k = 0; k < vector_bytes; ++k)
      if (place + k < line_bytes) line[place + k] = clip8(sum[k]);
  }
}

// Grid: (images, ceil(size / lines_of_band)). images: uint8 [count][size][size][3]; an invalid row gives zeros.
DEVICE void resize_block(const uint8_t* data, int64_t data_bytes, const PlanRow* rows, int32_t size, uint8_t* images,
                         unsigned char* shared) {
  const PlanRow& row = rows[blockIdx.x];
  const int32_t thread = threadIdx.x, threads = blockDim.x, line_bytes = 3 * size;
  const int32_t first_line = blockIdx.y * lines_of_band, lines = smaller(lines_of_band, size - first_line);
  uint8_t* output = images + (int64_t{blockIdx.x} * size + first_line) * line_bytes;
  if (row_problem(row, data_bytes, size) != RowProblem::none) {
    for (int32_t i = thread; i < lines * line_bytes; i += threads) output[i] = 0;
    return;
  }
  const ResizeShared shape{size};
  auto* pixels = reinterpret_cast<uint32_t*>(shared + shape.pixels());  // [lines_at_once][columns_at_once]
  auto* sums = reinterpret_cast<int32_t*>(shared + shape.sums());       // of an output line of many parts
  uint8_t* strip = shared + shape.strip();                              // [strip_lines][strip_stride]
  const int32_t strip_lines = shape.strip_lines(), strip_stride = shape.line_bytes();

  const AxisTaps across(row.box.width, row.resized_width, row.window_left, row.filter, size, shape.kept(),
                        shared + shape.columns());
  const AxisTaps down(row.box.height, row.resized_height, row.window_top + first_line, row.filter, lines, shape.kept(),
                      shared + shape.lines());
  for (int32_t x = thread; x < size; x += threads) find_taps_and_weights(across, x);
  for (int32_t y = threads - 1 - thread; y < lines; y += threads) find_taps_and_weights(down, y);
  __syncthreads();

  // Source lines [line, line + count), at most lines_at_once, into the strip. A thread makes a column of them.
  const int64_t stride = 3 * int64_t{row.width};
  const int64_t source = row.offset + row.box.top * stride + 3 * int64_t{row.box.left};
  const auto resize_lines = [&](int32_t line, int32_t count) {
    for (int32_t tile = 0; tile < size; tile += threads) {
      const int32_t x = tile + thread;
      int32_t sum[lines_at_once][3];
      for (auto& rgb : sum) rgb[0] = rgb[1] = rgb[2] = one_half;
      for (int32_t left = 0; left < row.box.width; left += columns_at_once) {
        const int32_t right = smaller(left + columns_at_once, row.box.width);
        __syncthreads();  // the pixels unpacked before are used up
        for (Cells four(divided_up(right - left, 4)); four.row < count; four.next()) {
          const int64_t at = source + (line + four.row) * stride + 3 * (left + 4 * four.column);
          reinterpret_cast<Words4*>(pixels + four.row * columns_at_once)[four.column] = load_pixels(data, data_bytes, at);
        }
        __syncthreads();
        if (x >= size) continue;
        const int32_t end = smaller(right, across.end[x]);
        for (int32_t at = larger(left, across.first[x]); at < end;) {
          int32_t kept_from = across.first[x];
          if (!across.fits(x)) find_weights(across, x, (kept_from = at) - across.first[x], across.kept, 0);
          const int32_t kept_to = smaller(end, kept_from + across.kept);
          for (; at < kept_to; ++at) {
            const int32_t weight = across.weights[(at - kept_from) * size + x];
#pragma unroll
            for (int i = 0; i < lines_at_once; ++i) {
              const uint32_t pixel = pixels[i * columns_at_once + at - left];
              for (int c = 0; c < 3; ++c) sum[i][c] += weight * level_of(pixel, c);
            }
          }
        }
      }
      uint8_t* to = strip + 3 * (row.flip ? size - 1 - x : x);
#pragma unroll
      for (int i = 0; i < lines_at_once; ++i)
        if (x < size && i < count)
          for (int c = 0; c < 3; ++c) to[((line + i) & (strip_lines - 1)) * strip_stride + c] = clip8(sum[i][c]);
    }
  };

  int32_t made_from = 0, made_to = 0;  // source lines in the strip
  for (int32_t y = 0, count; y < lines; y += count) {
    // Output lines [y, y + count) are made together as long as what they read fits the strip. One that reads more, or
    // with more weights than are kept, is made alone, part by part.
    int32_t begin = down.first[y], end = down.end[y];
    for (count = 1; count < lines_at_once && y + count < lines && down.fits(y) && down.fits(y + count); ++count) {
      const int32_t lowest = smaller(begin, down.first[y + count]), highest = larger(end, down.end[y + count]);
      if (highest - lowest > strip_lines) break;
      begin = lowest;
      end = highest;
    }
    const int32_t part_lines = down.fits(y) ? strip_lines : smaller(strip_lines, down.kept);
    for (int32_t part = begin; part < end; part += part_lines) {
      const int32_t part_end = smaller(part + part_lines, end);
      if (part < made_from || part > made_to) made_from = made_to = part;
      while (made_to < part_end) {  // and lines that later outputs read, while there is room
        const int32_t room = part + strip_lines, later = larger(part_end, down.end[lines - 1]);
        const int32_t step = smaller(lines_at_once, smaller(room, later) - made_to);
        resize_lines(made_to, step);
        made_to += step;
      }
      made_from = larger(made_from, made_to - strip_lines);
      __syncthreads();
      if (!down.fits(y)) {
        for (int32_t i = thread; i < down.kept; i += threads) find_weights(down, y, part - begin + i, 1, i);
        __syncthreads();
      }
      for (Cells cell(strip_stride / vector_bytes); cell.row < count; cell.next()) {
        const int32_t line = y + cell.row, place = vector_bytes * cell.column;
        const int32_t kept_from = down.fits(y) ? down.first[line] : part;
        const int32_t to = smaller(part_end, down.end[line]);
        int32_t sum[vector_bytes];
#pragma unroll
        for (int k = 0; k < vector_bytes; ++k) sum[k] = part == begin ? one_half : sums[place + k];
        for (int32_t at = larger(part, down.first[line]); at < to; ++at) {
          const int32_t weight = down.weights[(at - kept_from) * lines + line];
          const uint8_t* levels = strip + (at & (strip_lines - 1)) * strip_stride + place;
          const Words2 words = *reinterpret_cast<const Words2*>(levels);
#pragma unroll
          for (int k = 0; k < vector_bytes; ++k) sum[k] += weight * level_of(words.word[k / 4], k % 4);
        }
        if (part_end == end) {
          store_levels(sum, line_bytes, place, output + line * line_bytes);
        } else {
#pragma unroll
          for (int k = 0; k < vector_bytes; ++k) sums[place + k] = sum[k];
        }
      }
    }
  }
}

}  // namespace deit::cuda
