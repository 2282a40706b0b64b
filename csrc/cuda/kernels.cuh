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
#include "resize.cuh"

namespace deit::cuda {

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
