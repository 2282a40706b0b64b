// Crop, resize and flip on the CPU, over the arithmetic of arithmetic/resample.h.
//
// Both resize passes are the same weighted sums of runs of bytes. The horizontal pass works on 32 source lines
// transposed, so that a column's 32 pixels are a run of 96 bytes; the vertical pass finds its runs along a line.
#include <algorithm>
#include <cstring>

#include "../arithmetic/resample.h"
#include "stages.h"
#include "transpose.h"
#include "weights.h"

namespace deit::cpu {
namespace {

constexpr int block = 96, lines_per_tile = 32, group = 4;
constexpr int64_t spill = 4;                     // bytes that transpose_pixels writes behind its pixels
constexpr int64_t column_bytes = block + spill;  // of a tile

struct Scratch {
  Weights across, down;
  std::vector<uint8_t> tile, resized, lines;
};

// to[0, block) = the rounded weighted sum of `count` runs of as many bytes, `stride` apart; weights lie `step` apart.
INTO_CLONE void weighted_sum(const uint8_t* from, int64_t stride, const int32_t* weight, int32_t step, int32_t count,
                             uint8_t* to) {
  int32_t sum[block];
  for (int i = 0; i < block; ++i) sum[i] = one_half;
  for (int32_t t = 0; t < count; ++t, from += stride, weight += step) {
    const int32_t w = *weight;
    for (int i = 0; i < block; ++i) sum[i] += w * from[i];
  }
  for (int i = 0; i < block; ++i) to[i] = clip8(sum[i]);
}

// Runs of `bytes` bytes: output i is the weighted sum of those from from + (first[i] - lowest) * stride on. Whole
// blocks are read, and up to taps_at_once - 1 runs too many; only `bytes` are written.
VECTOR_CLONES void weighted_pass_portable(const uint8_t* from, int64_t stride, const Weights& weights, int32_t size,
                                          int64_t bytes, uint8_t* to, int64_t to_stride) {
  for (int32_t i = 0; i < size; ++i, to += to_stride) {
    const uint8_t* first = from + (weights.first[i] - weights.lowest) * stride;
    const int32_t *value = &weights.value[i], count = weights.count[i];
    int64_t at = 0;
    for (; at + block <= bytes; at += block) weighted_sum(first + at, stride, value, size, count, to + at);
    if (at == bytes) continue;
    uint8_t run[block];
    weighted_sum(first + at, stride, value, size, count, run);
    std::memcpy(to + at, run, bytes - at);
  }
}

#ifdef DEIT_AVX512
// The same by dot products of four bytes with four digits. Sums of digits, shifted and added modulo 2**32, are the sums
// of the weights.
AVX512 void weighted_pass_by_dots(const uint8_t* from, int64_t stride, const Weights& weights, int32_t size,
                                  int64_t bytes, uint8_t* to, int64_t to_stride) {
  constexpr int64_t width = sizeof(__m256i);
  for (int32_t i = 0; i < size; ++i, to += to_stride) {
    const uint8_t* first = from + (weights.first[i] - weights.lowest) * stride;
    const int32_t quads = (weights.count[i] + taps_at_once - 1) / taps_at_once;
    for (int64_t at = 0; at < bytes; at += width) {
      __m256i sum[digits][4] = {};
      for (__m256i& lowest : sum[0]) lowest = _mm256_set1_epi32(one_half);
      const uint8_t* run = first + at;
      const int32_t* digit = &weights.quad[i];
      for (int32_t q = 0; q < quads; ++q) {
        __m256i tap[4], pair[4], points[4];
        for (int t = 0; t < 4; ++t, run += stride) tap[t] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(run));
        for (int t = 0; t < 4; t += 2) {
          pair[t] = _mm256_unpacklo_epi8(tap[t], tap[t + 1]);
          pair[t + 1] = _mm256_unpackhi_epi8(tap[t], tap[t + 1]);
        }
        for (int k = 0; k < 2; ++k) {
          points[2 * k] = _mm256_unpacklo_epi16(pair[k], pair[2 + k]);
          points[2 * k + 1] = _mm256_unpackhi_epi16(pair[k], pair[2 + k]);
        }
        for (int d = 0; d < digits; ++d, digit += size)
          for (int k = 0; k < 4; ++k)
            sum[d][k] = _mm256_dpbusd_epi32(sum[d][k], points[k], _mm256_set1_epi32(*digit));
      }
      __m256i level[4];
      for (int k = 0; k < 4; ++k) {
        const __m256i upper = _mm256_add_epi32(sum[1][k], _mm256_slli_epi32(sum[2][k], 8));
        level[k] = _mm256_srai_epi32(_mm256_add_epi32(sum[0][k], _mm256_slli_epi32(upper, 8)), precision);
      }
      // Packing saturates as clip8 does, and undoes the order of unpacking.
      const __m256i done = _mm256_packus_epi16(_mm256_packs_epi32(level[0], level[1]),
                                               _mm256_packs_epi32(level[2], level[3]));
      const int64_t left = std::min(width, bytes - at);
      _mm256_mask_storeu_epi8(to + at, static_cast<__mmask32>((uint64_t{1} << left) - 1), done);
    }
  }
}
#endif

void weighted_pass(const uint8_t* from, int64_t stride, const Weights& weights, int32_t size, int64_t bytes,
                   uint8_t* to, int64_t to_stride) {
#ifdef DEIT_AVX512
  if (has_avx512) return weighted_pass_by_dots(from, stride, weights, size, bytes, to, to_stride);
#endif
  weighted_pass_portable(from, stride, weights, size, bytes, to, to_stride);
}

// `count` lines of `columns` pixels, line i at from + min(i, last) * stride, to tile[column][line][rgb]. Nothing behind
// the lines' last pixels is read.
VECTOR_CLONES void lines_to_columns(const uint8_t* from, int64_t stride, int32_t count, int32_t columns,
                                    uint8_t* tile) {
  for (int32_t i = 0; i < count; i += group) {
    const uint8_t* line[group];
    for (int j = 0; j < group; ++j) line[j] = from + std::min(i + j, count - 1) * stride;
    uint8_t* to = tile + channels * i;
    int32_t x = 0;
    for (; x + 6 <= columns; x += group)  // 16 bytes are part of 6 pixels
      transpose_pixels({line[0] + channels * x, line[1] + channels * x, line[2] + channels * x, line[3] + channels * x},
                       {to + x * column_bytes, to + (x + 1) * column_bytes, to + (x + 2) * column_bytes,
                        to + (x + 3) * column_bytes});
    for (; x < columns; ++x)
      for (int j = 0; j < group; ++j)
        std::memcpy(to + x * column_bytes + channels * j, line[j] + channels * x, channels);
  }
}

// tile[column][line][rgb], column x at from + x * step, to `count` lines rounded up to whole groups.
VECTOR_CLONES void columns_to_lines(const uint8_t* from, int64_t step, int32_t count, int32_t columns, uint8_t* lines,
                                    int64_t line_bytes) {
  for (int32_t i = 0; i < count; i += group) {
    const uint8_t* column = from + channels * i;
    uint8_t* line = lines + i * line_bytes;
    int32_t x = 0;
    for (; x + group <= columns; x += group, column += group * step, line += channels * group)
      transpose_pixels({column, column + step, column + 2 * step, column + 3 * step},
                       {line, line + line_bytes, line + 2 * line_bytes, line + 3 * line_bytes});
    for (; x < columns; ++x, column += step, line += channels)
      for (int j = 0; j < group; ++j) std::memcpy(line + j * line_bytes, column + channels * j, channels);
  }
}

}  // namespace

void resize_image(const uint8_t* data, const PlanRow& row, int32_t size, uint8_t* image) {
  thread_local Scratch scratch;
  Weights &across = scratch.across, &down = scratch.down;
  across.build(Axis(row.box.width, row.resized_width, row.filter), row.resized_width, row.window_left, size);
  down.build(Axis(row.box.height, row.resized_height, row.filter), row.resized_height, row.window_top, size);
  const int32_t columns = across.end - across.lowest, line_count = down.end - down.lowest;
  const int64_t stride = channels * row.width;
  const int64_t line_bytes = (size * channels + block - 1) / block * block + spill;
  uint8_t* tile = at_least(scratch.tile, (columns + taps_at_once - 1) * column_bytes);
  uint8_t* resized = at_least(scratch.resized, size * column_bytes);
  uint8_t* lines = at_least(scratch.lines, (line_count + std::max(group, taps_at_once) - 1) * line_bytes);
  const int32_t top = row.box.top + down.lowest, left = row.box.left + across.lowest;
  const uint8_t* source = data + row.offset + top * stride + channels * left;
  for (int32_t y = 0; y < line_count; y += lines_per_tile) {
    const int32_t count = std::min(lines_per_tile, line_count - y);
    lines_to_columns(source + y * stride, stride, count, columns, tile);
    weighted_pass(tile, column_bytes, across, size, block, resized, column_bytes);
    columns_to_lines(resized + (row.flip ? (size - 1) * column_bytes : 0), row.flip ? -column_bytes : column_bytes,
                     count, size, lines + y * line_bytes, line_bytes);
  }
  weighted_pass(lines, line_bytes, down, size, channels * size, image, channels * size);
}

}  // namespace deit::cpu
