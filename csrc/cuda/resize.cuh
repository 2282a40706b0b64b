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
constexpr int32_t columns_at_once = 384;  // source columns unpacked between two barriers
constexpr int32_t vector_bytes = 16;      // values of an output line that a thread makes at once

// What `outputs` outputs along one axis read: output i the source pixels [first[i], end[i]), with weights[tap][i]. When
// these are more than `kept`, only `kept` of them lie there at a time.
struct AxisTaps {
  int32_t before, after, window;  // of the axis, and the first output's place in it
  Filter filter;
  int32_t outputs, kept;
  double* total;
  int32_t *first, *end, *weights;

  HOST_DEVICE static constexpr int32_t bytes(int32_t outputs, int32_t kept) {
    return divided_up((16 + 4 * kept) * outputs, 16) * 16;
  }

  DEVICE AxisTaps(int32_t before, int32_t after, int32_t window, Filter filter, int32_t outputs, int32_t kept,
                  unsigned char* memory)
      : before(before), after(after), window(window), filter(filter), outputs(outputs), kept(kept),
        total(reinterpret_cast<double*>(memory)), first(reinterpret_cast<int32_t*>(total + outputs)),
        end(first + outputs), weights(end + outputs) {}

  DEVICE Axis axis() const { return {before, after, filter}; }
  DEVICE Taps taps(int32_t output) const { return axis().taps(reflect(window + output, after)); }
  DEVICE bool fits(int32_t output) const { return end[output] - first[output] <= kept; }
};

// All float64 of the resize is in two functions. They are called, not inlined, and find what they need in shared memory:
// else it would take registers from the loops over pixels.
DEVICE_CALL void find_taps(const AxisTaps* shared, int32_t output) {
  const Taps taps = shared->taps(output);
  shared->total[output] = shared->axis().total(taps);
  shared->first[output] = taps.first;
  shared->end[output] = taps.first + taps.count;
}

// The weights of the taps [from, from + count) of an output, as far as it has so many, into weights[slot] and on.
DEVICE_CALL void find_weights(const AxisTaps* shared, int32_t output, int32_t from, int32_t count, int32_t slot) {
  const Axis axis = shared->axis();
  const Taps taps = shared->taps(output);
  const double total = shared->total[output];
  const int32_t to = smaller(from + count, taps.count);
#pragma unroll 1
  for (int32_t tap = from; tap < to; ++tap, ++slot)
    shared->weights[slot * shared->outputs + output] = fixed_point(axis.weight(taps, taps.first + tap), total);
}

struct alignas(16) ResizeState {
  PlanRow row;
  AxisTaps across, down;
  bool good;
};

// The shared memory of a block, in bytes from its beginning: 48 KB, and more from 384 pixels on.
struct ResizeShared {
  int32_t size;

  // Weights kept of an output: all of them as long as bicubic shrinks to 224 pixels by no more than 2.25.
  HOST_DEVICE constexpr int32_t kept() const { return smaller(larger(2240 / size, 8), 32); }
  HOST_DEVICE constexpr int32_t line_bytes() const { return divided_up(3 * size, vector_bytes) * vector_bytes; }
  HOST_DEVICE constexpr int32_t strip_lines() const {
    return smaller(larger((48 * 1024 - strip()) / line_bytes(), 8), 32);
  }

  HOST_DEVICE constexpr int32_t state() const { return 0; }
  HOST_DEVICE constexpr int32_t pixels() const { return state() + sizeof(ResizeState); }
  HOST_DEVICE constexpr int32_t columns() const { return pixels() + 4 * lines_at_once * columns_at_once; }
  HOST_DEVICE constexpr int32_t lines() const { return columns() + AxisTaps::bytes(size, kept()); }
  HOST_DEVICE constexpr int32_t sums() const { return lines() + AxisTaps::bytes(lines_of_band, kept()); }
  HOST_DEVICE constexpr int32_t strip() const { return sums() + 4 * line_bytes(); }
  HOST_DEVICE constexpr int32_t bytes() const { return strip() + strip_lines() * line_bytes(); }
};
static_assert(ResizeShared{224}.bytes() <= 48 * 1024 && ResizeShared{max_output}.bytes() <= 99 * 1024);

// Pixels of a buffer of which words of 4 bytes may be read: the whole buffer but for a few bytes at its ends.
struct Source {
  const uint8_t* pixels;
  int32_t words_from, words_to;  // offsets from `pixels` at which four pixels may be read as words
  int64_t bytes;                 // from `pixels` to the buffer's end

  DEVICE Source(const uint8_t* data, int64_t data_bytes, int64_t offset) : pixels(data + offset), bytes(data_bytes - offset) {
    words_from = offset < 3 ? 3 : 0;
    words_to = static_cast<int32_t>(bytes - 16 < INT32_MAX ? bytes - 16 : INT32_MAX);
  }

  // Four pixels; those behind the buffer are 0.
  DEVICE Words4 four_at(int32_t offset) const {
    const uint8_t* at = pixels + offset;
    if (offset >= words_from && offset <= words_to) {
      const uint32_t ahead = reinterpret_cast<uintptr_t>(at) % 4;
      const auto* words = reinterpret_cast<const uint32_t*>(at - ahead);
      const uint32_t word[4] = {words[0], words[1], words[2], words[3]};
      return four_pixels(word_between(word[0], word[1], ahead), word_between(word[1], word[2], ahead),
                         word_between(word[2], word[3], ahead));
    }
    Words4 four{};
    for (int i = 0; i < 4; ++i)
      if (offset + 3 * (i + 1) <= bytes) four.word[i] = pixel_at(at + 3 * i);
    return four;
  }
};

// The levels of sums into an output line, from its byte `place` on.
DEVICE void store_levels(const int32_t (&sum)[vector_bytes], int32_t line_bytes, int32_t place, uint8_t* line) {
  if (line_bytes % vector_bytes == 0) {
    Words4 levels{};
#pragma unroll
    for (int k = 0; k < vector_bytes; ++k) levels.word[k / 4] |= uint32_t{clip8(sum[k])} << (8 * (k % 4));
    *reinterpret_cast<Words4*>(line + place) = levels;
  } else {
#pragma unroll
    for (int k = 0; k < vector_bytes; ++k)
      if (place + k < line_bytes) line[place + k] = clip8(sum[k]);
  }
}

// Grid: (images, ceil(size / lines_of_band)). images: uint8 [count][size][size][3]; an invalid row gives zeros.
DEVICE void resize_block(const uint8_t* data, int64_t data_bytes, const PlanRow* rows, int32_t size, uint8_t* images,
                         unsigned char* shared) {
  const ResizeShared shape{size};
  auto& state = *reinterpret_cast<ResizeState*>(shared + shape.state());
  const PlanRow& row = state.row;
  const int32_t thread = threadIdx.x, threads = blockDim.x, line_bytes = 3 * size;
  const int32_t first_line = blockIdx.y * lines_of_band, lines = smaller(lines_of_band, size - first_line);
  uint8_t* output = images + (int64_t{blockIdx.x} * size + first_line) * line_bytes;
  copy_row(rows + blockIdx.x, state.row);
  __syncthreads();
  const AxisTaps across(row.box.width, row.resized_width, row.window_left, row.filter, size, shape.kept(),
                        shared + shape.columns());
  const AxisTaps down(row.box.height, row.resized_height, row.window_top + first_line, row.filter, lines, shape.kept(),
                      shared + shape.lines());
  if (thread == 0) {
    state.good = row_problem(row, data_bytes, size) == RowProblem::none;
    state.across = across;
    state.down = down;
  }
  __syncthreads();
  if (!state.good) {
    for (int32_t i = thread; i < lines * line_bytes; i += threads) output[i] = 0;
    return;
  }
  auto* pixels = reinterpret_cast<uint32_t*>(shared + shape.pixels());  // [lines_at_once][columns_at_once]
  auto* sums = reinterpret_cast<int32_t*>(shared + shape.sums());       // of an output line of many parts
  uint8_t* strip = shared + shape.strip();                              // [strip_lines][strip_stride]
  const int32_t strip_lines = shape.strip_lines(), strip_stride = shape.line_bytes();
  const uint8_t* strip_end = strip + strip_lines * strip_stride;

  for (int32_t x = thread; x < size; x += threads) {
    find_taps(&state.across, x);
    find_weights(&state.across, x, 0, across.kept, 0);
  }
  for (int32_t y = threads - 1 - thread; y < lines; y += threads) {
    find_taps(&state.down, y);
    find_weights(&state.down, y, 0, down.kept, 0);
  }
  __syncthreads();

  // The strip is a ring: line `base` lies in its first slot, and made are the lines [made_from, made_to).
  int32_t base = 0, made_from = 0, made_to = 0;
  const auto in_strip = [&](int32_t line) {
    const int32_t slot = line - base;
    return strip + (slot < strip_lines ? slot : slot - strip_lines) * strip_stride;
  };

  // Source lines [line, line + count), at most lines_at_once, into the strip. A thread makes a column of them.
  const int32_t stride = 3 * row.width;
  const auto resize_lines = [&](int32_t line, int32_t count) {
    const Source source(data, data_bytes, row.offset + (row.box.top + line) * int64_t{stride} + 3 * row.box.left);
    for (int32_t tile = 0; tile < size; tile += threads) {
      const int32_t x = tile + thread;
      int32_t sum[lines_at_once][3];
      for (auto& rgb : sum) rgb[0] = rgb[1] = rgb[2] = one_half;
      for (int32_t left = 0; left < row.box.width; left += columns_at_once) {
        const int32_t right = smaller(left + columns_at_once, row.box.width);
        __syncthreads();  // the pixels unpacked before are used up
        for (Cells four(divided_up(right - left, 4)); four.row < count; four.next())
          reinterpret_cast<Words4*>(pixels + four.row * columns_at_once)[four.column] =
              source.four_at(four.row * stride + 3 * left + 12 * four.column);
        __syncthreads();
        if (x >= size) continue;
        const int32_t end = smaller(right, across.end[x]);
        for (int32_t at = larger(left, across.first[x]); at < end;) {
          int32_t kept_from = across.first[x];
          if (!across.fits(x)) find_weights(&state.across, x, (kept_from = at) - across.first[x], across.kept, 0);
          const int32_t kept_to = smaller(end, kept_from + across.kept);
          const int32_t* weight = across.weights + (at - kept_from) * size + x;
          for (const uint32_t* pixel = pixels + at - left; at < kept_to; ++at, ++pixel, weight += size)
#pragma unroll
            for (int i = 0; i < lines_at_once; ++i)
              for (int c = 0; c < 3; ++c) sum[i][c] += *weight * level_of(pixel[i * columns_at_once], c);
        }
      }
      if (x >= size) continue;
      const int32_t to = 3 * (row.flip ? size - 1 - x : x);
#pragma unroll
      for (int i = 0; i < lines_at_once; ++i)
        if (i < count)
          for (int c = 0; c < 3; ++c) in_strip(line + i)[to + c] = clip8(sum[i][c]);
    }
  };

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
      if (part < made_from || part > made_to) base = made_from = made_to = part;
      while (base > part) base -= strip_lines;  // its slot stays
      while (base + strip_lines <= part) base += strip_lines;
      while (made_to < part_end) {  // and lines that later outputs read, while there is room
        const int32_t room = part + strip_lines, later = larger(part_end, down.end[lines - 1]);
        const int32_t step = smaller(lines_at_once, smaller(room, later) - made_to);
        resize_lines(made_to, step);
        made_to += step;
      }
      made_from = larger(made_from, made_to - strip_lines);
      __syncthreads();
      if (!down.fits(y)) {
        for (int32_t i = thread; i < down.kept; i += threads) find_weights(&state.down, y, part - begin + i, 1, i);
        __syncthreads();
      }
      for (Cells cell(strip_stride / vector_bytes); cell.row < count; cell.next()) {
        const int32_t line = y + cell.row, place = vector_bytes * cell.column;
        const int32_t from = larger(part, down.first[line]), to = smaller(part_end, down.end[line]);
        const int32_t* weight = down.weights + (from - (down.fits(y) ? down.first[line] : part)) * lines + line;
        const uint8_t* levels = in_strip(from) + place;
        int32_t sum[vector_bytes];
#pragma unroll
        for (int k = 0; k < vector_bytes; ++k) sum[k] = part == begin ? one_half : sums[place + k];
        for (int32_t at = from; at < to; ++at, weight += lines) {
          const Words4 words = *reinterpret_cast<const Words4*>(levels);
#pragma unroll
          for (int k = 0; k < vector_bytes; ++k) sum[k] += *weight * level_of(words.word[k / 4], k % 4);
          levels += strip_stride;
          if (levels >= strip_end) levels -= strip_end - strip;
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
