// The CUDA kernel bodies, over the same arithmetic as the CPU: no torch, no launch syntax, so that the tests can build
// them with g++ and run them on the CPU (csrc/emulate). augment_cuda.cu launches them.
//
// Allowed here: dynamic shared memory, __syncthreads, full-mask warp intrinsics, integer atomics. The block size is a
// parameter; every loop strides by it.
#pragma once

#include <cstdint>

#include "augment/normalise.h"
#include "augment/plan.h"
#include "augment/resample.h"

#ifdef __CUDACC__
#define DEVICE __device__ inline
#else
#define DEVICE inline
#endif

namespace deit::cuda {

constexpr int32_t lines_per_step = 8;  // source lines resized horizontally between two barriers

// A block makes `lines` output lines of one image. It walks down the source lines that these need, resizes
// `lines_per_step` of them horizontally into shared memory and adds them, weighted, to the integer sums of its output
// lines. So shared memory does not grow with the crop.
struct ResizeShared {
  int32_t size, lines;

  HOST_DEVICE int64_t row_totals() const { return 0; }                                       // double [size]
  HOST_DEVICE int64_t line_totals() const { return row_totals() + 8 * size; }                // double [lines]
  HOST_DEVICE int64_t sums() const { return line_totals() + 8 * lines; }                     // int32 [lines][3 size]
  HOST_DEVICE int64_t line_weights() const { return sums() + 12 * int64_t{lines} * size; }   // int32 [step][lines]
  HOST_DEVICE int64_t strip() const { return line_weights() + 4 * lines_per_step * lines; }  // uint8 [step][3 size]
  HOST_DEVICE int64_t bytes() const { return strip() + 3 * lines_per_step * int64_t{size}; }
};

// The most output lines, at most 8, whose sums fit the 48 KiB that every block may have: 8 at 224, one at 1024 pixels.
HOST_DEVICE ResizeShared resize_shared(int32_t size) {
  ResizeShared shared{size, 8};
  while (shared.lines > 1 && shared.bytes() > 48 * 1024) shared.lines /= 2;
  return shared;
}

// Grid: (images, ceil(size / lines)). images: uint8 [count][size][size][3]; a row with a problem gives zeros.
DEVICE void resize_block(const uint8_t* data, int64_t data_bytes, const PlanRow* rows, ResizeShared shape,
                         uint8_t* images, unsigned char* shared) {
  const PlanRow row = rows[blockIdx.x];
  const int32_t size = shape.size, thread = threadIdx.x, threads = blockDim.x;
  const int32_t first_line = blockIdx.y * shape.lines;
  const int32_t lines = shape.lines < size - first_line ? shape.lines : size - first_line;
  const int32_t line_bytes = 3 * size;
  uint8_t* output = images + (int64_t{blockIdx.x} * size + first_line) * line_bytes;
  if (row_problem(row, data_bytes, size) != RowProblem::none) {
    for (int32_t i = thread; i < lines * line_bytes; i += threads) output[i] = 0;
    return;
  }
  auto* row_total = reinterpret_cast<double*>(shared + shape.row_totals());
  auto* line_total = reinterpret_cast<double*>(shared + shape.line_totals());
  auto* sum = reinterpret_cast<int32_t*>(shared + shape.sums());
  auto* line_weight = reinterpret_cast<int32_t*>(shared + shape.line_weights());
  uint8_t* strip = shared + shape.strip();

  const Axis across(row.box.width, row.resized_width, row.filter);
  const Axis down(row.box.height, row.resized_height, row.filter);
  const int32_t window_line = row.window_top + first_line;
  for (int32_t x = thread; x < size; x += threads) row_total[x] = across.total(across.taps(row.window_left + x));
  for (int32_t y = thread; y < lines; y += threads) line_total[y] = down.total(down.taps(window_line + y));
  for (int32_t i = thread; i < lines * line_bytes; i += threads) sum[i] = one_half;

  const Taps last_taps = down.taps(window_line + lines - 1);
  const int32_t source_end = last_taps.first + last_taps.count;
  const int64_t stride = 3 * int64_t{row.width};
  const uint8_t* source = data + row.offset + row.box.top * stride + 3 * int64_t{row.box.left};
  for (int32_t line = down.taps(window_line).first; line < source_end; line += lines_per_step) {
    const int32_t step = lines_per_step < source_end - line ? lines_per_step : source_end - line;
    __syncthreads();  // the totals are there; the strip of the step before is used up
    for (int32_t i = thread; i < step * lines; i += threads) {
      const int32_t at = line + i / lines, y = i % lines;
      const Taps taps = down.taps(window_line + y);
      const bool read = taps.first <= at && at < taps.first + taps.count;
      line_weight[i] = read ? fixed_point(down.weight(taps, at), line_total[y]) : 0;
    }
    for (int32_t x = thread; x < size; x += threads) {
      const Taps taps = across.taps(row.window_left + x);
      int32_t column[3 * lines_per_step];
      for (int32_t i = 0; i < 3 * lines_per_step; ++i) column[i] = one_half;
      for (int32_t at = taps.first; at < taps.first + taps.count; ++at) {
        const int32_t weight = fixed_point(across.weight(taps, at), row_total[x]);
        const uint8_t* pixel = source + line * stride + 3 * int64_t{at};
#pragma unroll
        for (int32_t i = 0; i < lines_per_step; ++i)
          if (i < step)
            for (int32_t c = 0; c < 3; ++c) column[3 * i + c] += weight * pixel[i * stride + c];
      }
      const int32_t to = 3 * (row.flip ? size - 1 - x : x);
#pragma unroll
      for (int32_t i = 0; i < lines_per_step; ++i)
        if (i < step)
          for (int32_t c = 0; c < 3; ++c) strip[i * line_bytes + to + c] = clip8(column[3 * i + c]);
    }
    __syncthreads();
    for (int32_t i = thread; i < line_bytes; i += threads)
      for (int32_t y = 0; y < lines; ++y) {
        int32_t total = sum[y * line_bytes + i];
        for (int32_t at = 0; at < step; ++at) total += line_weight[at * lines + y] * strip[at * line_bytes + i];
        sum[y * line_bytes + i] = total;
      }
  }
  // Each thread stores the sums it has added up itself, so no barrier is due.
  for (int32_t i = thread; i < line_bytes; i += threads)
    for (int32_t y = 0; y < lines; ++y) output[y * line_bytes + i] = clip8(sum[y * line_bytes + i]);
}

// Where value `index` of an image's output comes from: the byte of [size][size][3].
HOST_DEVICE int32_t source_byte(int32_t index, int32_t size, Layout layout, int32_t patch) {
  const int32_t pixels = size * size;
  if (layout == Layout::channels_last) return index;
  if (layout == Layout::nchw) return index % pixels * 3 + index / pixels;
  const int32_t patch_pixels = patch * patch, grid = size / patch;
  const int32_t number = index / (3 * patch_pixels), inside = index % (3 * patch_pixels);
  const int32_t channel = inside / patch_pixels, y = inside % patch_pixels / patch, x = inside % patch;
  return ((number / grid * patch + y) * size + number % grid * patch + x) * 3 + channel;
}

// Grid: (images, any number of blocks), together striding over an image's values. A row with a problem gives NaN.
template <Type type>
DEVICE void finish_block(const uint8_t* images, int64_t data_bytes, const PlanRow* rows, int32_t size, Finish finish,
                         typename Element<type>::Bits* output) {
  const bool good = row_problem(rows[blockIdx.x], data_bytes, size) == RowProblem::none;
  const int32_t values = 3 * size * size;
  images += int64_t{blockIdx.x} * values;
  output += int64_t{blockIdx.x} * values;
  for (int32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < values; i += gridDim.y * blockDim.x) {
    const int32_t from = source_byte(i, size, finish.layout, finish.patch);
    const int32_t channel = from % 3;
    const float value = normalise(images[from], finish.mean[channel], finish.std[channel]);
    output[i] = element_bits<type>(good ? value : not_a_number());
  }
}

}  // namespace deit::cuda
