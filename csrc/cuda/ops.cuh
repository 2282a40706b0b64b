// One op by an image's CUDA blocks, over the same arithmetic as the CPU.
#pragma once

#include <cstdint>

#include "../arithmetic/colour.h"
#include "../arithmetic/histogram.h"
#include "../arithmetic/plan.h"
#include "../augment.h"
#include "affine.cuh"
#include "blur.cuh"
#include "block.cuh"
#include "groups.cuh"

namespace deit::cuda {

// What the threads of a block share about their image.
struct OpsShared {
  // Pixels of a level, in several counters each: neighbours often have the same level, and would wait for each other.
  static constexpr int32_t counters = 8;
  uint32_t counter[3 * levels][counters];
  uint32_t histogram[3 * levels];
  uint8_t table[3 * levels];
  AffineShared affine;
  PlanRow row;
  OpCall call;
  bool good;
  static_assert(3 * levels * counters >= AffineShared::capacity, "the list of an affine op lies in the counters");
};

// visit(pixel) for every pixel, four from three words where images begin at such words.
template <typename Visit>
DEVICE void visit_pixels(const uint8_t* image, int64_t pixels, const Visit& visit) {
  const Team team = Team::of_image();
  if (pixels % 4 == 0) {
    const auto* words = reinterpret_cast<const uint32_t*>(image);
    for (int64_t i = team.number; i < pixels / 4; i += team.size) {
      const Words4 four = four_pixels(words[3 * i], words[3 * i + 1], words[3 * i + 2]);
      for (int k = 0; k < 4; ++k) visit(four.word[k]);
    }
  } else {
    for (int64_t i = team.number; i < pixels; i += team.size) visit(pixel_at(image + 3 * i));
  }
}

// pixel = changed(pixel) for every pixel; the highest byte of what `changed` returns is 0.
template <typename Changed>
DEVICE void change_pixels(uint8_t* image, int64_t pixels, const Changed& changed) {
  const Team team = Team::of_image();
  if (pixels % 4 == 0) {
    auto* words = reinterpret_cast<uint32_t*>(image);
    for (int64_t i = team.number; i < pixels / 4; i += team.size) {
      Words4 four = four_pixels(words[3 * i], words[3 * i + 1], words[3 * i + 2]);
      for (int k = 0; k < 4; ++k) four.word[k] = changed(four.word[k]);
      words[3 * i] = four.word[0] | four.word[1] << 24;
      words[3 * i + 1] = four.word[1] >> 8 | four.word[2] << 16;
      words[3 * i + 2] = four.word[2] >> 16 | four.word[3] << 8;
    }
  } else {
    for (int64_t i = team.number; i < pixels; i += team.size) {
      const uint32_t pixel = changed(pixel_at(image + 3 * i));
      for (int c = 0; c < 3; ++c) image[3 * i + c] = static_cast<uint8_t>(level_of(pixel, c));
    }
  }
}

DEVICE uint32_t gray_of(uint32_t pixel) {
  return static_cast<uint32_t>(gray(level_of(pixel, 0), level_of(pixel, 1), level_of(pixel, 2)));
}

// A level sharpened, from the taps of three lines that begin a pixel before it.
DEVICE int32_t sharpened(uint32_t above, uint32_t line, uint32_t below, float factor) {
  const uint32_t sum = dot4(0x010101, above, dot4(0x010501, line, dot4(0x010101, below, 0)));
  return blend(smoothed(static_cast<int32_t>(sum), 0), byte_of(line, 1), factor);  // the centre is in the sum
}

DEVICE void sharpen_pixels(const Groups& source, float factor, uint8_t* image) {
  const int32_t height = source.height, width = source.width, columns = source.columns();
  if (width % 4 != 0) {
    for (Cells cell(width, Team::of_image()); cell.row < height; cell.next()) {
      if (cell.row == 0 || cell.row == height - 1 || cell.column == 0 || cell.column == width - 1) continue;
      Planes line[3];
      for (int i = 0; i < 3; ++i) line[i] = source.taps(cell.row + i - 1, cell.column - 1);
      for (int c = 0; c < 3; ++c)
        image[3 * (int64_t{cell.row} * width + cell.column) + c] = static_cast<uint8_t>(
            sharpened(line[0].channel[c], line[1].channel[c], line[2].channel[c], factor));
    }
    return;
  }
  for (Cells cell(columns, Team::of_image()); cell.row < height; cell.next()) {
    if (cell.row == 0 || cell.row == height - 1) continue;
    Words4 line[3][3];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) line[i][j] = *source.at(cell.row + i - 1, cell.column + j - 1);
    const uint32_t edge = (cell.column == 0 ? 0x000000FF : 0) | (cell.column == columns - 1 ? 0xFF000000 : 0);
    Planes result;
    for (int c = 0; c < 3; ++c) {
      uint32_t taps[4][3];
      for (int i = 0; i < 3; ++i) {
        const uint32_t before = line[i][0].word[c], here = line[i][1].word[c], after = line[i][2].word[c];
        taps[0][i] = permuted(before, here, 0x6543);
        taps[1][i] = here;
        taps[2][i] = permuted(here, after, 0x4321);
        taps[3][i] = permuted(here, after, 0x5432);
      }
      int32_t level[4];
      for (int k = 0; k < 4; ++k) level[k] = sharpened(taps[k][0], taps[k][1], taps[k][2], factor);
      result.channel[c] = (four_levels(level) & ~edge) | (line[1][1].word[c] & edge);
    }
    store_planes(result, reinterpret_cast<uint32_t*>(image) + 3 * (int64_t{cell.row} * columns + cell.column));
  }
}

// How many pixels have a level of a channel; for contrast the gray levels, as channel 0. The image's blocks add up what
// each of them counts in `sums`, 3 * levels words.
DEVICE void count_levels(const uint8_t* image, int64_t pixels, bool as_gray, uint32_t* sums, OpsShared& shared) {
  const Team team = Team::of_image();
  for (int32_t i = team.number; i < 3 * levels; i += team.size) sums[i] = 0;
  for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x)
    for (uint32_t& counter : shared.counter[i]) counter = 0;
  __syncthreads();
  const int32_t mine = threadIdx.x % OpsShared::counters;
  visit_pixels(image, pixels, [&](uint32_t pixel) {
    if (as_gray)
      atomicAdd(&shared.counter[gray_of(pixel)][mine], 1u);
    else
      for (int c = 0; c < 3; ++c) atomicAdd(&shared.counter[c * levels + level_of(pixel, c)][mine], 1u);
  });
  Team::sync();
  for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x) {
    uint32_t count = 0;
    for (const uint32_t counter : shared.counter[i]) count += counter;
    if (count > 0) atomicAdd(sums + i, count);
  }
  Team::sync();
  for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x) shared.histogram[i] = sums[i];
  __syncthreads();
}

// What a level of a channel becomes.
DEVICE uint8_t new_level(const OpCall& call, int32_t level, const uint32_t* gray_histogram, const uint32_t* histogram,
                         int64_t pixels) {
  switch (call.op) {
    case Op::auto_contrast: return auto_contrast_level(histogram, level);
    case Op::equalize: return equalize_level(histogram, level);
    case Op::contrast: return table_level(call, level, rounded_mean(sum_of_levels(gray_histogram), pixels));
    default: return table_level(call, level, 0);
  }
}

// What a level of each channel becomes: each thread of the image's blocks finds some, in `words`, for all the blocks.
DEVICE void find_table(const OpCall& call, int64_t pixels, uint32_t* words, OpsShared& shared) {
  const auto level = [&](int32_t i) {
    return new_level(call, i % levels, shared.histogram, shared.histogram + i / levels * levels, pixels);
  };
  if (is_table(call.op) && call.op != Op::contrast) {
    for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x) shared.table[i] = level(i);
  } else {
    const Team team = Team::of_image();
    for (int32_t i = team.number; i < 3 * levels; i += team.size) words[i] = level(i);
    Team::sync();
    for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x) shared.table[i] = static_cast<uint8_t>(words[i]);
  }
  __syncthreads();
}

// One op in place, by the image's blocks. What one thread stores here another reads only behind a barrier.
DEVICE void run_call(uint8_t* image, uint32_t* scratch, int32_t height, int32_t width, const OpCall& call,
                     OpsShared& shared) {
  const int64_t pixels = int64_t{height} * width;
  const auto factor = static_cast<float>(call.arg);
  if (call.op == Op::none) return;
  if (call.op == Op::color) {
    change_pixels(image, pixels, [&](uint32_t pixel) {
      const auto degenerate = static_cast<int32_t>(gray_of(pixel));
      return pixel_of(blend(degenerate, level_of(pixel, 0), factor), blend(degenerate, level_of(pixel, 1), factor),
                      blend(degenerate, level_of(pixel, 2), factor));
    });
  } else if (call.op == Op::gaussian_blur) {
    blur_pixels(image, scratch, height, width, call.arg);
  } else if (call.op == Op::sharpness || is_affine(call.op)) {
    const Groups source{scratch, height, width};
    source.fill(image);
    Team::sync();
    if (call.op == Op::sharpness)
      sharpen_pixels(source, factor, image);
    else
      affine_pixels(source, call, shared.affine, reinterpret_cast<int32_t*>(shared.counter), image);
  } else {
    if (!is_table(call.op) || call.op == Op::contrast)
      count_levels(image, pixels, call.op == Op::contrast, scratch, shared);
    find_table(call, pixels, scratch + 3 * levels, shared);
    change_pixels(image, pixels, [&](uint32_t pixel) {
      return pixel_of(shared.table[level_of(pixel, 0)], shared.table[levels + level_of(pixel, 1)],
                      shared.table[2 * levels + level_of(pixel, 2)]);
    });
  }
  Team::sync();
}

// Grid: (images, parts). The ops of a plan's rows, in place; an invalid row leaves its image as it is.
DEVICE void plan_ops_block(int64_t data_bytes, const PlanRow* rows, int32_t size, uint8_t* images, uint32_t* scratch,
                           unsigned char* memory) {
  auto& shared = *reinterpret_cast<OpsShared*>(memory);
  const PlanRow& row = rows[blockIdx.x];
  bool has_ops = false;
  for (const OpCall& call : row.ops) has_ops |= call.op != Op::none;
  if (!has_ops) return;
  copy_row(&row, shared.row);
  __syncthreads();
  if (threadIdx.x == 0) shared.good = row_problem(shared.row, data_bytes, size) == RowProblem::none;
  __syncthreads();
  if (!shared.good) return;
  uint8_t* image = images + 3 * int64_t{blockIdx.x} * size * size;
#pragma unroll 1
  for (const OpCall& call : shared.row.ops)
    run_call(image, scratch + blockIdx.x * scratch_pixels(size, size), size, size, call, shared);
}

// Grid: (images, parts). One op for each image, in place; an unknown op does nothing.
DEVICE void ops_block(const OpCall* calls, int32_t height, int32_t width, uint8_t* images, uint32_t* scratch,
                      unsigned char* memory) {
  auto& shared = *reinterpret_cast<OpsShared*>(memory);
  copy_row(calls + blockIdx.x, shared.call);
  __syncthreads();
  if (!is_good(shared.call)) return;
  run_call(images + 3 * int64_t{blockIdx.x} * height * width, scratch + blockIdx.x * scratch_pixels(height, width),
           height, width, shared.call, shared);
}

}  // namespace deit::cuda
