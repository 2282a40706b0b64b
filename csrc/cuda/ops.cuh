// One op of RandAugment by a CUDA block, over the same arithmetic as the CPU; a part of kernels.cuh.
#pragma once

#include <cstdint>

#include "../arithmetic/affine.h"
#include "../arithmetic/colour.h"
#include "../arithmetic/histogram.h"
#include "../arithmetic/plan.h"

namespace deit::cuda {

// What the threads of a block share about their image.
struct OpsShared {
  unsigned long long gray_sum;
  uint32_t histogram[3 * levels];
  uint8_t table[3 * levels];
};
static_assert(sizeof(OpsShared) <= 4096, "the ops leave an SM's shared memory to the L1 cache");

template <typename Real>
struct Rgb {
  Real red, green, blue;
};
template <typename Real>
HOST_DEVICE Rgb<Real> operator+(Rgb<Real> a, Rgb<Real> b) {
  return {a.red + b.red, a.green + b.green, a.blue + b.blue};
}
template <typename Real>
HOST_DEVICE Rgb<Real> operator-(Rgb<Real> a, Rgb<Real> b) {
  return {a.red - b.red, a.green - b.green, a.blue - b.blue};
}
template <typename Real, typename Scale>
HOST_DEVICE Rgb<Real> operator*(Rgb<Real> a, Scale scale) {
  const Real by = scale;
  return {a.red * by, a.green * by, a.blue * by};
}

template <typename Real>
DEVICE void affine_pixels(const uint8_t* from, int32_t height, int32_t width, const OpCall& call, uint8_t* to) {
  Real matrix[6];
  for (int i = 0; i < 6; ++i) matrix[i] = static_cast<Real>(call.matrix[i]);
  struct Load {
    const uint8_t* from;
    int32_t width;
    HOST_DEVICE Rgb<Real> operator()(int32_t row, int32_t column) const {
      const uint8_t* pixel = from + 3 * (int64_t{row} * width + column);
      return {Real(pixel[0]), Real(pixel[1]), Real(pixel[2])};
    }
  };
  const auto filter = static_cast<Filter>(call.filter);
  for (int64_t i = threadIdx.x; i < int64_t{height} * width; i += blockDim.x) {
    const auto y = static_cast<int32_t>(i / width), x = static_cast<int32_t>(i % width);
    const Point<Real> point = source_point(matrix, y, x, height, width);
    uint8_t* pixel = to + 3 * i;
    if (point.inside) {
      const auto value = interpolate<Rgb<Real>>(point, filter, height, width, Load{from, width});
      pixel[0] = truncated(value.red);
      pixel[1] = truncated(value.green);
      pixel[2] = truncated(value.blue);
    } else {
      for (int c = 0; c < 3; ++c) pixel[c] = call.fill[c];
    }
  }
}

DEVICE void sharpen_pixels(const uint8_t* from, int32_t height, int32_t width, float factor, uint8_t* to) {
  const int64_t line = 3 * int64_t{width};
  for (int64_t i = threadIdx.x; i < line * height; i += blockDim.x) {
    const int64_t y = i / line, x = i % line;
    if (y == 0 || y == height - 1 || x < 3 || x >= line - 3) continue;
    const uint8_t* at = from + i;
    const int32_t neighbours = at[-line - 3] + at[-line] + at[-line + 3] + at[-3] + at[3] + at[line - 3] + at[line] +
                               at[line + 3];
    to[i] = blend(smoothed(neighbours, *at), *at, factor);
  }
}

// One op in place, by the whole block. What one thread stores here another reads only behind a barrier.
DEVICE void run_call(uint8_t* image, uint8_t* scratch, int32_t height, int32_t width, const OpCall& call,
                     OpsShared& shared) {
  const int64_t pixels = int64_t{height} * width, bytes = 3 * pixels;
  const int32_t thread = threadIdx.x, threads = blockDim.x;
  if (call.op == Op::none) return;
  if (call.op == Op::color) {
    for (int64_t i = thread; i < pixels; i += threads) {
      uint8_t* pixel = image + 3 * i;
      const int32_t degenerate = gray(pixel[0], pixel[1], pixel[2]);
      for (int c = 0; c < 3; ++c) pixel[c] = blend(degenerate, pixel[c], static_cast<float>(call.arg));
    }
    __syncthreads();
    return;
  }
  if (call.op == Op::sharpness || call.op >= Op::shear_x || call.op == Op::rotate) {
    for (int64_t i = thread; i < bytes; i += threads) scratch[i] = image[i];
    __syncthreads();
    if (call.op == Op::sharpness)
      sharpen_pixels(scratch, height, width, static_cast<float>(call.arg), image);
    else if (call.fast)
      affine_pixels<float>(scratch, height, width, call, image);
    else
      affine_pixels<double>(scratch, height, width, call, image);
    __syncthreads();
    return;
  }
  if (call.op == Op::contrast) {
    if (thread == 0) shared.gray_sum = 0;
    __syncthreads();
    unsigned long long sum = 0;
    for (int64_t i = thread; i < pixels; i += threads) sum += gray(image[3 * i], image[3 * i + 1], image[3 * i + 2]);
    atomicAdd(&shared.gray_sum, sum);
    __syncthreads();
  }
  if (is_table(call.op)) {
    const int32_t mean = call.op == Op::contrast ? rounded_mean(shared.gray_sum, pixels) : 0;
    for (int32_t i = thread; i < 3 * levels; i += threads) shared.table[i] = table_level(call, i % levels, mean);
  } else {
    for (int32_t i = thread; i < 3 * levels; i += threads) shared.histogram[i] = 0;
    __syncthreads();
    for (int64_t i = thread; i < bytes; i += threads) atomicAdd(&shared.histogram[i % 3 * levels + image[i]], 1u);
    __syncthreads();
    for (int32_t c = thread; c < 3; c += threads) {
      const uint32_t* histogram = shared.histogram + c * levels;
      uint8_t* table = shared.table + c * levels;
      if (call.op == Op::equalize)
        equalize_table(histogram, table);
      else
        auto_contrast_table(histogram, table);
    }
  }
  __syncthreads();
  for (int64_t i = thread; i < bytes; i += threads) image[i] = shared.table[i % 3 * levels + image[i]];
  __syncthreads();
}

}  // namespace deit::cuda
