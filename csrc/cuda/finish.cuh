// The last stage by CUDA blocks: normalise, erase, mix, round to the output's type, in the output's layout.
//
// The 3 x 256 values that normalising can give are a table in shared memory. A thread makes eight pixels at once, stored
// as 16 bytes, wherever eight pixels lie together in the output. Pixels that are erased are made again afterwards, one
// by one, with their noise.
#pragma once

#include <cstdint>

#include "../arithmetic/histogram.h"
#include "../arithmetic/mix.h"
#include "../arithmetic/noise.h"
#include "../arithmetic/normalise.h"
#include "../arithmetic/plan.h"
#include "block.cuh"

namespace deit::cuda {

constexpr int32_t lines_of_part = 28;  // output lines of a block at most: 8 blocks an image at 224 pixels
constexpr int32_t group = 8;           // pixels of a line that a thread makes at once

// What the last stage reads: `count` staged images, their rows, and how they are mixed, or null.
struct FinishBatch {
  const uint8_t* images;
  int64_t data_bytes;
  const PlanRow* rows;
  const MixRow* mix;
  int64_t count;
  int32_t size;
};

// What a block shares of its image and its partner, which is itself where nothing is mixed.
struct FinishShared {
  float value[3][levels];  // of a channel's level
  PlanRow own, partner;
  MixRow mix;
  int64_t partner_index;
  Mode mode;
  bool good;
};

// Two values as their bits, the first in the lower half, to nearest, ties to even: what element_bits gives, but for
// other bits of a NaN.
template <Type type>
DEVICE uint32_t two_bits(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  if constexpr (type == Type::float16) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  if constexpr (type == Type::bfloat16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
#else
  return uint32_t{element_bits<type>(first)} | uint32_t{element_bits<type>(second)} << 16;
#endif
}

// Eight values, `step` apart from the first on, to where they lie together in the output: a multiple of 16 bytes.
template <Type type, int first, int step, int count>
DEVICE void store_eight(const float (&value)[count], typename Element<type>::Bits* to) {
  const auto at = [&](int i) { return value[first + step * i]; };
  if constexpr (type == Type::float32) {
    store_global({{float_bits(at(0)), float_bits(at(1)), float_bits(at(2)), float_bits(at(3))}}, to);
    store_global({{float_bits(at(4)), float_bits(at(5)), float_bits(at(6)), float_bits(at(7))}}, to + 4);
  } else {
    store_global({{two_bits<type>(at(0), at(1)), two_bits<type>(at(2), at(3)), two_bits<type>(at(4), at(5)),
            two_bits<type>(at(6), at(7))}},
          to);
  }
}

// place_of without an integer division; an image's values are fewer than 2**31.
struct Places {
  int32_t size, patch, patches;  // pixels of a line and of a patch's line, patches of a line
  Layout layout;
  int32_t channel;  // how far the next channel is

  DEVICE Places(int32_t size, const Finish& finish)
      : size(size), patch(finish.patch), patches(finish.layout == Layout::patches ? quotient(size, patch) : 0),
        layout(finish.layout),
        channel(layout == Layout::channels_last ? 1 : layout == Layout::nchw ? size * size : patch * patch) {}

  DEVICE int32_t first(int32_t y, int32_t x) const {
    const int32_t pixel = y * size + x;
    if (layout == Layout::channels_last) return 3 * pixel;
    if (layout == Layout::nchw) return pixel;
    const int32_t row = quotient(y, patch), column = quotient(x, patch);
    return 3 * channel * (row * patches + column) + (y - row * patch) * patch + x - column * patch;
  }
};

// An image, its partner and how they are mixed.
struct Mixed {
  const FinishShared& shared;
  const uint8_t *own, *partner;
  Mode mode;
  float share, rest;  // of the image and its partner: both 1 but for mixup
  int32_t size;

  // The values of the pixels [x, x + group) of line y, pixel by pixel, as if nothing were erased.
  DEVICE void group_at(int32_t y, int32_t x, float (&value)[3 * group]) const {
    const int64_t place = 3 * (int64_t{y} * size + x);
    const Box& box = shared.mix.box;
    int32_t from = 0, to = 0;  // which of them are the partner's
    if (mode == Mode::cutmix && box.top <= y && y < box.top + box.height) {
      from = larger(box.left - x, 0);
      to = smaller(box.left + box.width - x, group);
    }
    const bool edge = from < to && to - from < group;
    look_up(to - from == group ? partner + place : own + place, [&](int i, float level) { value[i] = level; });
    if (edge)
      look_up(partner + place, [&](int i, float level) {
        if (from <= i / 3 && i / 3 < to) value[i] = level;
      });
    if (mode == Mode::mixup)
      look_up(partner + place, [&](int i, float level) { value[i] = value[i] * share + level * rest; });
  }

  // What is seen of the two images at a pixel.
  struct View {
    bool partner;                   // rather than the image
    bool own_noise, partner_noise;  // of which is seen
  };
  DEVICE View view(int32_t y, int32_t x) const {
    const bool pasted = mode == Mode::cutmix && is_pasted(shared.mix, y, x);
    return {pasted, !pasted && is_erased(shared.own, y, x),
            (pasted || mode == Mode::mixup) && is_erased(shared.partner, y, x)};
  }

  DEVICE void pixel_at(int32_t pixel, const View& view, float (&rgb)[3]) const {
    const int first = view.partner, last = mode == Mode::mixup ? 1 : first;
#pragma unroll 1
    for (int side = first; side <= last; ++side) {
      float value[3];
      if (side ? view.partner_noise : view.own_noise) {
        for (uint32_t c = 0; c < 3; ++c) value[c] = noise_at(side ? shared.partner : shared.own, static_cast<uint32_t>(pixel), c);
      } else {
        const uint8_t* levels = (side ? partner : own) + 3 * int64_t{pixel};
        for (int c = 0; c < 3; ++c) value[c] = shared.value[c][levels[c]];
      }
      const float part = side ? rest : share;
      for (int c = 0; c < 3; ++c) rgb[c] = side == first ? value[c] * part : rgb[c] + value[c] * part;
    }
  }

  // take(i, value) for every value of a group.
  template <typename Take>
  DEVICE void look_up(const uint8_t* pixels, const Take& take) const {
    const auto* words = reinterpret_cast<const Words2*>(pixels);
    const Words2 word[3] = {words[0], words[1], words[2]};
#pragma unroll
    for (int i = 0; i < 3 * group; ++i) take(i, shared.value[i % 3][level_of(word[i / 8].word[i / 4 % 2], i % 4)]);
  }
};

// Grid: (images, ceil(size / lines_of_part)). A block makes every gridDim.y-th line, so that what is erased is shared
// evenly. An invalid row, or one whose partner is invalid, gives NaN.
template <Type type>
DEVICE void finish_block(const FinishBatch& batch, const Finish& finish, typename Element<type>::Bits* output,
                         unsigned char* memory) {
  auto& shared = *reinterpret_cast<FinishShared*>(memory);
  const int32_t size = batch.size, first_line = blockIdx.y, step = gridDim.y;
  const int64_t image_bytes = 3 * int64_t{size} * size;

  copy_row(batch.rows + blockIdx.x, shared.own);
  if (batch.mix) copy_row(batch.mix + blockIdx.x, shared.mix);
  for (int32_t level = threadIdx.x; level < levels; level += blockDim.x)
    for (int c = 0; c < 3; ++c)
      shared.value[c][level] = normalise(static_cast<uint8_t>(level), finish.mean[c], finish.std[c]);
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.good = row_problem(shared.own, batch.data_bytes, size) == RowProblem::none &&
                  (!batch.mix || mix_problem(shared.mix, batch.count, size) == MixProblem::none);
    shared.mode = shared.good && batch.mix ? shared.mix.mode : Mode::none;
    shared.partner_index = shared.mode == Mode::none ? blockIdx.x : shared.mix.partner;
  }
  __syncthreads();
  const Mode mode = shared.mode;
  const int64_t partner = shared.partner_index;
  copy_row(batch.rows + partner, shared.partner);
  __syncthreads();
  if (threadIdx.x == 0)
    shared.good = shared.good && row_problem(shared.partner, batch.data_bytes, size) == RowProblem::none;
  __syncthreads();
  const bool good = shared.good;

  const Mixed mixed{shared,
                    batch.images + blockIdx.x * image_bytes,
                    batch.images + partner * image_bytes,
                    mode,
                    mode == Mode::mixup ? own_share(shared.mix) : 1.0f,
                    mode == Mode::mixup ? partner_share(shared.mix) : 1.0f,
                    size};
  output += blockIdx.x * image_bytes;
  const bool together = size % group == 0 && (finish.layout != Layout::patches || finish.patch % group == 0) &&
                        reinterpret_cast<uintptr_t>(output) % sizeof(Words4) == 0;
  bool grouped = good && together;
  for (int c = 0; c < 3; ++c)  // a group has other bits than the CPU for NaN, which only values without end give
    if (!is_finite(shared.value[c][0]) || !is_finite(shared.value[c][levels - 1])) grouped = false;
  const Places places(size, finish);
  if (grouped) {
    for (Cells cell(size / group); first_line + step * cell.row < size; cell.next()) {
      const int32_t y = first_line + step * cell.row, x = group * cell.column;
      float value[3 * group];
      mixed.group_at(y, x, value);
      typename Element<type>::Bits* to = output + places.first(y, x);
      if (finish.layout == Layout::channels_last) {
        store_eight<type, 0, 1>(value, to);
        store_eight<type, 8, 1>(value, to + 8);
        store_eight<type, 16, 1>(value, to + 16);
      } else {
        store_eight<type, 0, 3>(value, to);
        store_eight<type, 1, 3>(value, to + places.channel);
        store_eight<type, 2, 3>(value, to + 2 * places.channel);
      }
    }
    __syncthreads();  // erased pixels are stored a second time, by other threads
  }
  // Pixel by pixel: all of them where there are no groups, else those of the two erased boxes.
  for (int pass = grouped ? 1 : 0; pass < (grouped ? 3 : 1); ++pass) {
    const Box box = pass == 0 ? Box{0, 0, size, size} : pass == 1 ? shared.own.erased : shared.partner.erased;
    if (box.width == 0) continue;
    const int32_t top = first_line + step * divided_up(larger(box.top - first_line, 0), step);
    for (Cells cell(box.width); top + step * cell.row < box.top + box.height; cell.next()) {
      const int32_t y = top + step * cell.row, x = box.left + cell.column;
      const auto view = mixed.view(y, x);
      if ((pass == 1 && !view.own_noise) || (pass == 2 && (view.own_noise || !view.partner_noise))) continue;
      float rgb[3] = {not_a_number(), not_a_number(), not_a_number()};
      if (good) mixed.pixel_at(y * size + x, view, rgb);
      typename Element<type>::Bits* to = output + places.first(y, x);
      for (int c = 0; c < 3; ++c) to[c * places.channel] = element_bits<type>(rgb[c]);
    }
  }
}

}  // namespace deit::cuda
