// The ops that look at all pixels first: contrast at their mean gray level, the others at each channel's histogram.
#pragma once

#include <cstdint>

#include "../../arithmetic/histogram.h"
#include "colour.cuh"

namespace deit::cuda {

// Of the levels 16 i to 16 i + 15 of a channel.
struct Segment {
  uint32_t count, below;  // pixels that have them, and those of the levels before
  int32_t low, high;      // the first and the last that a pixel has: `levels` and -1 where none has one
};

struct LevelsShared {
  // Pixels of a level, in several counters each: neighbours often have the same level, and would wait for each other.
  // Those of one level lie in different banks.
  static constexpr int32_t counters = 8, stride = 3 * levels + 32 / counters;
  static constexpr int32_t segments = 16, length = levels / segments;
  uint32_t counter[counters * stride];
  uint32_t histogram[3 * levels];
  Segment segment[3][segments];
  UsedLevels used[3];
  uint32_t step[3];
  uint8_t table[3 * levels];
};

// The rounded mean of the gray levels. The image's blocks add up what their threads find in `sums`, two words.
DEVICE_CALL int32_t mean_gray(const uint8_t* image, int64_t pixels, uint32_t* sums) {
  const Team team = Team::of_image();
  if (team.number == team.size - 1) sums[0] = sums[1] = 0;
  uint64_t sum = 0;
  visit_fours(
      pixels,
      [&](int64_t i) {
        const auto* words = reinterpret_cast<const uint32_t*>(image) + i;
        uint32_t four = 0;
        for (const uint32_t pixel : four_pixels(words[0], words[1], words[2]).word) four += gray_of(pixel);
        sum += four;
      },
      [&](int64_t i) { sum += gray_of(pixel_at(image + i)); });
  Team::sync();
  // In halves, of which neither overflows.
  atomicAdd(sums, static_cast<uint32_t>(sum & 0xFFFF));
  atomicAdd(sums + 1, static_cast<uint32_t>(sum >> 16));
  Team::sync();
  return rounded_mean((uint64_t{sums[1]} << 16) + sums[0], static_cast<uint64_t>(pixels));
}

// How many pixels have a level of a channel. The image's blocks add up what each of them counts in `sums`.
DEVICE void count_levels(const uint8_t* image, int64_t pixels, uint32_t* sums, LevelsShared& shared) {
  const Team team = Team::of_image();
  for (int32_t i = team.number; i < 3 * levels; i += team.size) sums[i] = 0;
  for (int32_t i = threadIdx.x; i < LevelsShared::counters * LevelsShared::stride; i += blockDim.x)
    shared.counter[i] = 0;
  __syncthreads();
  uint32_t* mine = shared.counter + threadIdx.x % LevelsShared::counters * LevelsShared::stride;
  visit_fours(
      pixels,
      [&](int64_t i) {
        const auto* words = reinterpret_cast<const uint32_t*>(image) + i;
        const uint32_t word[3] = {words[0], words[1], words[2]};
        for (int j = 0; j < 12; ++j) atomicAdd(mine + j % 3 * levels + byte_of(word[j / 4], j % 4), 1u);
      },
      [&](int64_t i) {
        for (int c = 0; c < 3; ++c) atomicAdd(mine + c * levels + image[i + c], 1u);
      });
  Team::sync();
  for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x) {
    uint32_t count = 0;
    for (int32_t k = 0; k < LevelsShared::counters; ++k) count += shared.counter[k * LevelsShared::stride + i];
    if (count > 0) atomicAdd(sums + i, count);
  }
  Team::sync();
  for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x) shared.histogram[i] = sums[i];
  __syncthreads();
}

// What the levels of every channel become, by the threads of a block; each block makes the whole table.
DEVICE void find_tables(Op op, LevelsShared& shared) {
  constexpr int32_t segments = LevelsShared::segments, length = LevelsShared::length;
  for (int32_t i = threadIdx.x; i < 3 * segments; i += blockDim.x) {
    Segment found{0, 0, levels, -1};
    for (int32_t k = 0; k < length; ++k) {
      const uint32_t count = shared.histogram[length * i + k];
      const int32_t level = i % segments * length + k;
      found.count += count;
      if (count > 0) {
        found.low = smaller(found.low, level);
        found.high = level;
      }
    }
    shared.segment[i / segments][i % segments] = found;
  }
  __syncthreads();
  for (int32_t c = threadIdx.x; c < 3; c += blockDim.x) {
    UsedLevels used{levels, -1};
    uint32_t total = 0;
    for (Segment& segment : shared.segment[c]) {
      segment.below = total;
      total += segment.count;
      used.low = smaller(used.low, segment.low);
      used.high = larger(used.high, segment.high);
    }
    shared.used[c] = used;
    // equalized_step of arithmetic/histogram.h: where one level is in use, `last` are all pixels.
    shared.step[c] = used.high < 0 ? 0 : (total - shared.histogram[c * levels + used.high]) / 255;
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < 3 * levels; i += blockDim.x) {
    const int32_t c = i / levels, level = i % levels;
    if (op == Op::auto_contrast) {
      shared.table[i] = stretched(level, shared.used[c]);
    } else {
      uint32_t below = shared.segment[c][level / length].below;
      for (int32_t k = i - level % length; k < i; ++k) below += shared.histogram[k];
      shared.table[i] = equalized(level, below, shared.step[c]);
    }
  }
  __syncthreads();
}

DEVICE void change_by_histogram(uint8_t* image, int64_t pixels, Op op, uint32_t* sums, LevelsShared& shared) {
  count_levels(image, pixels, sums, shared);
  find_tables(op, shared);
  change_levels(image, pixels, [&](uint32_t word, int first) {
    const auto level = [&](int k) { return int32_t{shared.table[(first + k) % 3 * levels + byte_of(word, k)]}; };
    return packed(level(0), level(1), packed(level(2), level(3), 0));
  });
}

}  // namespace deit::cuda
