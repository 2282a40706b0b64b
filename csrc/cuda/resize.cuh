// Crop, resize and flip of an image by CUDA blocks: Pillow's two passes, sum by sum.
//
// A block makes a band of output lines. First it weighs the taps of all its columns and lines, once. Then it walks down
// the source: some lines are unpacked into words of a pixel, each thread resizes a column of them, and the results go
// into the strip, a ring of lines. When the strip holds all that the next few output lines read, these are made.
//
// An image that shrinks by more than 4, at 224 pixels, has more weights than are kept. Those of its columns are then made
// again for each 8 source lines, and its output lines are summed up part by part.
#pragma once

#include <cstdint>

#include "../arithmetic/plan.h"
#include "../arithmetic/resample.h"
#include "block.cuh"

namespace deit::cuda {

constexpr int32_t lines_of_band = 56;     // output lines of a block, at most
constexpr int32_t lines_at_once = 8;      // source lines that share a weight
constexpr int32_t columns_at_once = 384;  // source columns unpacked between two barriers
constexpr int32_t lines_together = 16;    // the most output lines that are made between two barriers
constexpr int32_t vector_bytes = 16;      // values of an output line that a thread makes at once

// The part of a block's shared memory that comes first.
struct alignas(16) ResizeSource {
  PlanRow row;
  const uint8_t *crop, *end;  // the crop's first pixel; the end of the buffer
  bool good;
  bool words_inside;  // whether the words round the crop's pixels lie in the buffer

  DEVICE void find(const uint8_t* data, int64_t data_bytes, int32_t size) {
    good = row_problem(row, data_bytes, size) == RowProblem::none;
    const int64_t first = row.offset + 3 * (row.box.top * int64_t{row.width} + row.box.left);
    const int64_t crop_bytes = 3 * int64_t{row.width} * row.box.height;
    words_inside = first >= 4 && first + crop_bytes + 64 <= data_bytes;
    crop = data + first;
    end = data + data_bytes;
  }
};

// Four pixels, which may begin anywhere: from the words round them, or where these may lie outside the buffer, from the
// bytes before `end`.
DEVICE Words4 load_four(const uint8_t* pixels, bool words_inside, const uint8_t* end) {
  if (words_inside) {
    const auto address = reinterpret_cast<uintptr_t>(pixels);
    const auto* words = reinterpret_cast<const uint32_t*>(address / 4 * 4);
    const uint32_t word[4] = {load_global(words), load_global(words + 1), load_global(words + 2), load_global(words + 3)};
    const uint32_t ahead = address % 4;
    return four_pixels(word_between(word[0], word[1], ahead), word_between(word[1], word[2], ahead),
                       word_between(word[2], word[3], ahead));
  }
  uint32_t word[3]{};
#pragma unroll
  for (int i = 0; i < 12; ++i)
    if (pixels + i < end) word[i / 4] |= uint32_t{pixels[i]} << 8 * (i % 4);
  return four_pixels(word[0], word[1], word[2]);
}

// What `outputs` outputs along one axis read: output i the source pixels [first[i], end[i]). The weights of its first
// `kept` taps lie in weights[tap][i].
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
  DEVICE bool fits() const { return 2.0 * axis().support + 1.0 <= kept; }  // whether no output has more than `kept`
};

// Output lines that are made together, and the source lines [begin, end) that they read.
struct Group {
  int32_t count, begin, end;
};

// What a block shares besides its tables and pixels.
struct BandState {
  ResizeSource source;
  AxisTaps across, down;
  bool fits;                   // all weights are kept
  Group group[lines_of_band];  // that begins at a line
};

// A block's shared memory, in bytes from its beginning. The host works it out.
struct ResizeShape {
  static constexpr int32_t wanted = 72 * 1024;  // so that two blocks fit an A100's multiprocessor; more from 512 pixels on
  int32_t size, kept;
  int32_t pixels;          // uint32 [lines_at_once][columns_at_once], behind the BandState
  int32_t columns, lines;  // the tables of the two axes
  int32_t sums;            // int32 [line_bytes], of an output line that is made in several parts
  int32_t strip, strip_lines, line_bytes;
  int32_t bytes;

  HOST_DEVICE explicit constexpr ResizeShape(int32_t size)
      : size(size), kept(clamped(3840 / size, 5, 32)), pixels(divided_up(sizeof(BandState), 16) * 16),
        columns(pixels + 4 * lines_at_once * columns_at_once), lines(columns + AxisTaps::bytes(size, kept)),
        sums(lines + AxisTaps::bytes(lines_of_band, kept)), strip(sums + 4 * line_bytes_of(size)),
        strip_lines(clamped((wanted - strip) / line_bytes_of(size), 6, 32)), line_bytes(line_bytes_of(size)),
        bytes(strip + strip_lines * line_bytes) {}

  HOST_DEVICE constexpr int32_t parts() const { return divided_up(size, lines_of_band); }  // blocks of an image
  HOST_DEVICE static constexpr int32_t line_bytes_of(int32_t size) {
    return divided_up(3 * size, vector_bytes) * vector_bytes;
  }
  HOST_DEVICE static constexpr int32_t clamped(int32_t value, int32_t low, int32_t high) {
    return smaller(larger(value, low), high);
  }
};
constexpr int32_t largest_resize_bytes() {
  int32_t most = 0;
  for (int32_t size = 1; size <= max_output; ++size) most = larger(most, ResizeShape(size).bytes);
  return most;
}
static_assert(ResizeShape(384).bytes <= ResizeShape::wanted && ResizeShape(max_output).bytes <= 99 * 1024);

// The strip: a ring of source lines that are resized horizontally. Line `base` lies in its first slot.
struct Strip {
  uint8_t* memory;  // [lines][stride]
  int32_t lines, stride, base;

  DEVICE uint8_t* at(int32_t line) const {
    const int32_t slot = line - base;
    return memory + (slot < lines ? slot : slot - lines) * stride;
  }
  // How many lines from this one on lie one behind the other.
  DEVICE int32_t lines_before_end(int32_t line) const {
    const int32_t slot = line - base;
    return slot < lines ? lines - slot : 2 * lines - slot;
  }
  // Makes room for the lines [line, line + lines). Those that stay, stay where they are.
  DEVICE void reach(int32_t line) {
    while (base > line) base -= lines;
    while (base + lines <= line) base += lines;
  }
};

// The weights of the taps [from, from + count) of an output, as far as it has so many, into weights[slot] and on.
DEVICE void store_weights(const AxisTaps& table, const Axis& axis, const Taps& taps, int32_t output, int32_t from,
                          int32_t count, int32_t slot) {
  const double total = table.total[output];
  const int32_t to = smaller(from + count, taps.count);
#pragma unroll 1
  for (int32_t tap = from; tap < to; ++tap, ++slot)
    table.weights[slot * table.outputs + output] = fixed_point(axis.weight(taps, taps.first + tap), total);
}

// Float64 is in functions that are called, not inlined, and find what they need in shared memory: else it would take
// registers from the loops over pixels.
DEVICE_CALL void find_taps(const AxisTaps* shared, int32_t output) {
  const Axis axis = shared->axis();
  const Taps taps = shared->taps(output);
  shared->first[output] = taps.first;
  shared->end[output] = taps.first + taps.count;
  shared->total[output] = axis.total(taps);
  store_weights(*shared, axis, taps, output, 0, shared->kept, 0);
}

DEVICE_CALL void find_weights(const AxisTaps* shared, int32_t output, int32_t from, int32_t count, int32_t slot) {
  store_weights(*shared, shared->axis(), shared->taps(output), output, from, count, slot);
}

// As many output lines from y on as read no more source lines than the strip holds.
DEVICE Group find_group(const AxisTaps& down, int32_t y, int32_t strip_lines) {
  Group group{1, down.first[y], down.end[y]};
  for (; group.count < lines_together && y + group.count < down.outputs; ++group.count) {
    const int32_t begin = smaller(group.begin, down.first[y + group.count]);
    const int32_t end = larger(group.end, down.end[y + group.count]);
    if (end - begin > strip_lines) break;
    group.begin = begin;
    group.end = end;
  }
  return group;
}

// The levels of sums into an output line, from its byte `place` on.
DEVICE void store_levels(const int32_t (&sum)[vector_bytes], int32_t line_bytes, int32_t place, uint8_t* line) {
  if (line_bytes % vector_bytes == 0) {
    Words4 levels;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t* four = sum + 4 * i;
      levels.word[i] = packed(four[0] >> precision, four[1] >> precision,
                              packed(four[2] >> precision, four[3] >> precision, 0));
    }
    store_global(levels, line + place);
  } else {
#pragma unroll
    for (int k = 0; k < vector_bytes; ++k)
      if (place + k < line_bytes) line[place + k] = clip8(sum[k]);
  }
}

// A block's inputs and shared memory.
struct ResizeBand {
  const ResizeShape& shape;
  unsigned char* shared;

  DEVICE BandState& state() const { return *reinterpret_cast<BandState*>(shared); }
  DEVICE uint32_t* pixels() const { return reinterpret_cast<uint32_t*>(shared + shape.pixels); }
  DEVICE AxisTaps across() const {
    const PlanRow& row = state().source.row;
    return {row.box.width, row.resized_width, row.window_left, row.filter, shape.size, shape.kept, shared + shape.columns};
  }
  DEVICE AxisTaps down(int32_t first_line, int32_t lines) const {
    const PlanRow& row = state().source.row;
    return {row.box.height, row.resized_height, row.window_top + first_line, row.filter, lines, shape.kept,
            shared + shape.lines};
  }

  // The source lines [line, line + count), at most lines_at_once, into the strip. A thread makes a column of them.
  DEVICE void resize_lines(int32_t line, int32_t count, const Strip& strip) const {
    const PlanRow& row = state().source.row;
    const int32_t size = shape.size, width = row.box.width, stride = 3 * row.width;
    const uint8_t *source = state().source.crop + line * int64_t{stride}, *end = state().source.end;
    const bool words_inside = state().source.words_inside;
    for (int32_t tile = 0; tile < size; tile += blockDim.x) {
      const int32_t x = tile + threadIdx.x;
      int32_t sum[lines_at_once][3];
      for (auto& rgb : sum) rgb[0] = rgb[1] = rgb[2] = one_half;
      for (int32_t left = 0; left < width; left += columns_at_once) {
        const int32_t columns = smaller(width - left, columns_at_once);
        __syncthreads();  // the pixels unpacked before are used up
        for (Cells four(divided_up(columns, 4)); four.row < count; four.next())
          reinterpret_cast<Words4*>(pixels() + four.row * columns_at_once)[four.column] =
              load_four(source + four.row * stride + 3 * (left + 4 * four.column), words_inside, end);
        __syncthreads();
        if (x < size) add_taps(x, left, columns, sum);
      }
      if (x >= size) continue;
      uint8_t* to = strip.at(line) + 3 * (row.flip ? size - 1 - x : x);
      const int32_t before_end = strip.lines_before_end(line);
#pragma unroll
      for (int i = 0; i < lines_at_once; ++i, to += strip.stride) {
        if (i == count) break;
        if (i == before_end) to -= strip.lines * strip.stride;
        for (int c = 0; c < 3; ++c) to[c] = clip8(sum[i][c]);
      }
    }
  }

  // The taps of column x among the unpacked columns [left, left + columns).
  DEVICE void add_taps(int32_t x, int32_t left, int32_t columns, int32_t (&sum)[lines_at_once][3]) const {
    const AxisTaps axis = across();
    const bool fits = state().fits;
    const int32_t first = axis.first[x], end = smaller(axis.end[x], left + columns);
    int32_t at = larger(first, left);
    while (at < end) {
      if (!fits) find_weights(&state().across, x, at - first, axis.kept, 0);
      const int32_t stop = fits ? end : smaller(end, at + axis.kept);
      const int32_t* weight = axis.weights + x + (fits ? (at - first) * axis.outputs : 0);
      for (const uint32_t* pixel = pixels() + at - left; at < stop; ++at, ++pixel, weight += axis.outputs)
#pragma unroll
        for (int i = 0; i < lines_at_once; ++i)
          for (int c = 0; c < 3; ++c) sum[i][c] += *weight * level_of(pixel[i * columns_at_once], c);
    }
  }

  // Output lines [first_line, first_line + lines), of which `output` is the first.
  DEVICE void make_lines(int32_t first_line, int32_t lines, uint8_t* output) const {
    const AxisTaps axis = down(first_line, lines);
    const bool fits = state().fits;
    const Group* group = state().group;
    auto* sums = reinterpret_cast<int32_t*>(shared + shape.sums);
    Strip strip{shared + shape.strip, shape.strip_lines, shape.line_bytes, 0};
    const int32_t part_lines = fits ? strip.lines : smaller(strip.lines, axis.kept);
    int32_t made_from = 0, made_to = 0;  // source lines in the strip
    for (int32_t y = 0; y < lines; y += group[y].count) {
      const int32_t begin = group[y].begin, end = group[y].end, count = group[y].count;
      // One part, but for a line that reads more than the strip holds or with more weights than are kept.
      for (int32_t part = begin; part < end; part += part_lines) {
        const int32_t part_end = smaller(part + part_lines, end);
        if (part < made_from || part > made_to) strip.base = made_from = made_to = part;
        strip.reach(part);
        while (made_to < part_end) {  // and lines that later outputs read, while there is room
          const int32_t until = smaller(part + strip.lines, larger(part_end, axis.end[lines - 1]));
          const int32_t step = smaller(lines_at_once, until - made_to);
          resize_lines(made_to, step, strip);
          made_to += step;
        }
        made_from = larger(made_from, made_to - strip.lines);
        __syncthreads();
        if (!fits) {
          for (int32_t i = threadIdx.x; i < axis.kept; i += blockDim.x)
            find_weights(&state().down, y, part - begin + i, 1, i);
          __syncthreads();
        }
        for (Cells cell(strip.stride / vector_bytes); cell.row < count; cell.next()) {
          const int32_t line = y + cell.row, place = vector_bytes * cell.column;
          const int32_t from = larger(part, axis.first[line]), to = smaller(part_end, axis.end[line]);
          const int32_t* weight = axis.weights + (from - (fits ? axis.first[line] : part)) * lines + line;
          const uint8_t* levels = strip.at(from) + place;
          const int32_t last_slot = from + strip.lines_before_end(from) - 1;
          int32_t sum[vector_bytes];
#pragma unroll
          for (int k = 0; k < vector_bytes; ++k) sum[k] = part == begin ? one_half : sums[place + k];
          for (int32_t at = from; at < to; ++at, weight += lines) {
            const Words4 words = *reinterpret_cast<const Words4*>(levels);
#pragma unroll
            for (int k = 0; k < vector_bytes; ++k) sum[k] += *weight * level_of(words.word[k / 4], k % 4);
            levels += at == last_slot ? strip.stride - strip.lines * strip.stride : strip.stride;
          }
          if (part_end == end) {
            store_levels(sum, 3 * shape.size, place, output + 3 * shape.size * line);
          } else {
#pragma unroll
            for (int k = 0; k < vector_bytes; ++k) sums[place + k] = sum[k];
          }
        }
      }
    }
  }
};

// Grid: (images, shape.parts()). images: uint8 [count][size][size][3]; an invalid row gives zeros.
DEVICE void resize_block(const uint8_t* data, int64_t data_bytes, const PlanRow* rows, const ResizeShape& shape,
                         uint8_t* images, unsigned char* memory) {
  const ResizeBand resize{shape, memory};
  BandState& state = resize.state();
  const int32_t size = shape.size, first_line = static_cast<int32_t>(blockIdx.y) * lines_of_band;
  const int32_t lines = smaller(lines_of_band, size - first_line);
  uint8_t* output = images + (int64_t{blockIdx.x} * size + first_line) * 3 * size;
  copy_row(rows + blockIdx.x, state.source.row);
  __syncthreads();
  if (threadIdx.x == 0) {
    state.source.find(data, data_bytes, size);
    if (state.source.good) {
      state.across = resize.across();
      state.down = resize.down(first_line, lines);
      state.fits = state.across.fits() && state.down.fits();
    }
  }
  __syncthreads();
  if (!state.source.good) {
    for (int32_t i = threadIdx.x; i < 3 * size * lines; i += blockDim.x) output[i] = 0;
    return;
  }
  for (int32_t x = threadIdx.x; x < size; x += blockDim.x) find_taps(&state.across, x);
  for (int32_t y = blockDim.x - 1 - threadIdx.x; y < lines; y += blockDim.x) find_taps(&state.down, y);
  __syncthreads();
  for (int32_t y = threadIdx.x; y < lines; y += blockDim.x)
    state.group[y] = find_group(resize.down(first_line, lines), y, state.fits ? shape.strip_lines : 0);
  __syncthreads();
  resize.make_lines(first_line, lines, output);
}

}  // namespace deit::cuda
