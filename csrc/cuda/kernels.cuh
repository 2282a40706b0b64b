// The CUDA kernel bodies, over the same arithmetic as the CPU: no torch, no launch syntax, so that the tests can build
// them with g++ and run them on the CPU (csrc/emulate). augment.cu launches them.
//
// Allowed here: dynamic shared memory, __syncthreads, full-mask warp intrinsics, integer atomics. The block size is a
// parameter; every loop strides by it.
#pragma once

#include <cstdint>

#include "../arithmetic/mix.h"
#include "../arithmetic/noise.h"
#include "../arithmetic/normalise.h"
#include "../arithmetic/plan.h"
#include "../arithmetic/resample.h"
#include "ops.cuh"

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

// Grid: (images, ceil(size / lines)). images: uint8 [count][size][size][3]; an invalid row gives zeros.
DEVICE void resize_block(const uint8_t* data, int64_t data_bytes, const PlanRow* rows, ResizeShared shape,
                         uint8_t* images, unsigned char* shared) {
  const PlanRow& row = rows[blockIdx.x];
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
  const auto column_taps = [&](int32_t x) { return across.taps(reflect(row.window_left + x, row.resized_width)); };
  const auto line_taps = [&](int32_t y) {
    return down.taps(reflect(row.window_top + first_line + y, row.resized_height));
  };
  for (int32_t x = thread; x < size; x += threads) row_total[x] = across.total(column_taps(x));
  for (int32_t y = thread; y < lines; y += threads) line_total[y] = down.total(line_taps(y));
  for (int32_t i = thread; i < lines * line_bytes; i += threads) sum[i] = one_half;

  int32_t source_begin = row.box.height, source_end = 0;  // a reflected line may lie before the one above it
  for (int32_t y = 0; y < lines; ++y) {
    const Taps taps = line_taps(y);
    source_begin = taps.first < source_begin ? taps.first : source_begin;
    source_end = taps.first + taps.count > source_end ? taps.first + taps.count : source_end;
  }
  const int64_t stride = 3 * int64_t{row.width};
  const uint8_t* source = data + row.offset + row.box.top * stride + 3 * int64_t{row.box.left};
  for (int32_t line = source_begin; line < source_end; line += lines_per_step) {
    const int32_t step = lines_per_step < source_end - line ? lines_per_step : source_end - line;
    __syncthreads();  // the totals are there; the strip of the step before is used up
    for (int32_t i = thread; i < step * lines; i += threads) {
      const int32_t at = line + i / lines, y = i % lines;
      const Taps taps = line_taps(y);
      const bool read = taps.first <= at && at < taps.first + taps.count;
      line_weight[i] = read ? fixed_point(down.weight(taps, at), line_total[y]) : 0;
    }
    for (int32_t x = thread; x < size; x += threads) {
      const Taps taps = column_taps(x);
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

// Grid: (images). The ops of a plan's rows, in place; an invalid row leaves its image as it is.
DEVICE void plan_ops_block(int64_t data_bytes, const PlanRow* rows, int32_t size, uint8_t* images, uint8_t* scratch,
                           unsigned char* shared) {
  const PlanRow& row = rows[blockIdx.x];
  if (row_problem(row, data_bytes, size) != RowProblem::none) return;
  const int64_t first = 3 * int64_t{blockIdx.x} * size * size;
  for (const OpCall& call : row.ops)
    run_call(images + first, scratch + first, size, size, call, *reinterpret_cast<OpsShared*>(shared));
}

// Grid: (images). One op for each image, in place; an unknown op does nothing.
DEVICE void ops_block(const OpCall* calls, int32_t height, int32_t width, uint8_t* images, uint8_t* scratch,
                      unsigned char* shared) {
  const OpCall& call = calls[blockIdx.x];
  if (!is_good(call)) return;
  const int64_t first = 3 * int64_t{blockIdx.x} * height * width;
  run_call(images + first, scratch + first, height, width, call, *reinterpret_cast<OpsShared*>(shared));
}

// Where in an image the value `index` of its output lies.
struct Site {
  int32_t y, x, channel;
};

HOST_DEVICE Site site_of(int32_t index, int32_t size, Layout layout, int32_t patch) {
  const int32_t pixels = size * size;
  if (layout == Layout::channels_last) return {index / 3 / size, index / 3 % size, index % 3};
  if (layout == Layout::nchw) return {index % pixels / size, index % size, index / pixels};
  const int32_t patch_pixels = patch * patch, grid = size / patch;
  const int32_t number = index / (3 * patch_pixels), inside = index % (3 * patch_pixels);
  return {number / grid * patch + inside % patch_pixels / patch, number % grid * patch + inside % patch,
          inside / patch_pixels};
}

// The normalised value of an image, or its noise.
DEVICE float value_at(const uint8_t* image, const PlanRow& row, const Site& at, int32_t size, const Finish& finish) {
  const int32_t pixel = at.y * size + at.x;
  if (!is_erased(row, at.y, at.x))
    return normalise(image[3 * pixel + at.channel], finish.mean[at.channel], finish.std[at.channel]);
  float rgb[3];
  noise_at(row, static_cast<uint32_t>(pixel), rgb);
  return rgb[at.channel];
}

// What the last stage reads: `count` staged images, their rows, and how they are mixed, or null.
struct FinishBatch {
  const uint8_t* images;
  int64_t data_bytes;
  const PlanRow* rows;
  const MixRow* mix;
  int64_t count;
  int32_t size;
};

// Grid: (images, any number of blocks), together striding over an image's values. An invalid row, or one whose
// partner is invalid, gives NaN.
template <Type type>
DEVICE void finish_block(const FinishBatch& batch, const Finish& finish, typename Element<type>::Bits* output) {
  const int32_t size = batch.size, values = 3 * size * size;
  const PlanRow& row = batch.rows[blockIdx.x];
  const MixRow* mix = batch.mix ? batch.mix + blockIdx.x : nullptr;
  bool good = row_problem(row, batch.data_bytes, size) == RowProblem::none;
  if (mix && mix_problem(*mix, batch.count, size) != MixProblem::none) good = false;
  const Mode mode = good && mix ? mix->mode : Mode::none;
  const int64_t partner = mode == Mode::none ? blockIdx.x : mix->partner;
  const PlanRow& partner_row = batch.rows[partner];
  if (mode != Mode::none && row_problem(partner_row, batch.data_bytes, size) != RowProblem::none) good = false;

  const uint8_t* image = batch.images + int64_t{blockIdx.x} * values;
  const uint8_t* partner_image = batch.images + partner * values;
  output += int64_t{blockIdx.x} * values;
  for (int32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < values; i += gridDim.y * blockDim.x) {
    const Site at = site_of(i, size, finish.layout, finish.patch);
    float value = not_a_number();
    if (good) {
      const bool pasted = mode == Mode::cutmix && is_pasted(*mix, at.y, at.x);
      value = pasted ? value_at(partner_image, partner_row, at, size, finish) : value_at(image, row, at, size, finish);
      if (mode == Mode::mixup)
        value = value * own_share(*mix) +
                value_at(partner_image, partner_row, at, size, finish) * partner_share(*mix);
    }
    output[i] = element_bits<type>(value);
  }
}

}  // namespace deit::cuda
