// Crop, resize and flip on the CPU, over the arithmetic of augment/resample.h.
//
// Both resize passes are the same inner loop over 96 adjacent bytes. 96 is 32 lines of RGB pixels: the horizontal pass
// works on 32 source lines transposed so that a column's pixels lie side by side, and then needs no shuffles; the
// vertical pass finds its 96 bytes along a line. 96 int32 sums stay in vector registers from AVX2 on.
#include <algorithm>
#include <cstring>

#include "augment/resample.h"
#include "cpu_stages.h"

namespace deit::cpu {
namespace {

constexpr int block = 96, lines_per_tile = 32;
constexpr int64_t column_bytes = block + 4;  // of a tile: room for the fourth byte of the last line's pixel

// The weights of `size` outputs along one axis, zero weights at both ends trimmed. Together they read [lowest, end);
// the first output need not be the one that reads lowest: one that lies on a pixel may read that pixel only.
struct Weights {
  std::vector<int32_t> first, count, begin, value;
  int32_t lowest, end;

  void build(const Axis& axis, int32_t resized, int32_t window, int32_t size) {
    first.resize(size);
    count.resize(size);
    begin.resize(size);
    value.clear();
    lowest = axis.before;
    end = 0;
    for (int32_t i = 0; i < size; ++i) {
      const Taps taps = axis.taps(reflect(window + i, resized));
      const size_t start = value.size();
      double total = 0.0;
      unnormalised.clear();
      for (int32_t at = taps.first; at < taps.first + taps.count; ++at) {
        unnormalised.push_back(axis.weight(taps, at));
        total += unnormalised.back();
      }
      for (const double weight : unnormalised) value.push_back(fixed_point(weight, total));
      while (value.size() > start + 1 && value.back() == 0) value.pop_back();
      size_t lead = start;
      while (lead + 1 < value.size() && value[lead] == 0) ++lead;
      first[i] = taps.first + static_cast<int32_t>(lead - start);
      begin[i] = static_cast<int32_t>(lead);
      count[i] = static_cast<int32_t>(value.size() - lead);
      lowest = std::min(lowest, first[i]);
      end = std::max(end, first[i] + count[i]);
    }
  }

 private:
  std::vector<double> unnormalised;
};

struct Scratch {
  Weights across, down;
  std::vector<uint8_t> tile, resized, lines;
};

// to[0, block) = the rounded weighted sum of `count` runs of as many bytes, `stride` apart.
INTO_CLONE void weighted_sum(const uint8_t* from, int64_t stride, const int32_t* weight, int32_t count, uint8_t* to) {
  int32_t sum[block];
  for (int i = 0; i < block; ++i) sum[i] = one_half;
  for (int32_t t = 0; t < count; ++t, from += stride) {
    const int32_t w = weight[t];
    for (int i = 0; i < block; ++i) sum[i] += w * from[i];
  }
  for (int i = 0; i < block; ++i) to[i] = clip8(sum[i]);
}

// A tile of columns, tile[column][line][rgb], to one of `size` columns.
VECTOR_CLONES void horizontal_pass(const uint8_t* tile, const Weights& weights, int32_t size, uint8_t* resized) {
  for (int32_t x = 0; x < size; ++x)
    weighted_sum(tile + (weights.first[x] - weights.lowest) * column_bytes, column_bytes,
                 &weights.value[weights.begin[x]], weights.count[x], resized + x * column_bytes);
}

// `line_bytes` is a multiple of `block`, so the last run of a line reads padding.
VECTOR_CLONES void vertical_pass(const uint8_t* lines, int64_t line_bytes, const Weights& weights, int32_t size,
                                 uint8_t* image) {
  const int64_t image_line = size * channels;
  for (int32_t y = 0; y < size; ++y) {
    const uint8_t* from = lines + (weights.first[y] - weights.lowest) * line_bytes;
    for (int64_t at = 0; at < image_line; at += block) {
      uint8_t run[block];
      weighted_sum(from + at, line_bytes, &weights.value[weights.begin[y]], weights.count[y], run);
      std::memcpy(image + y * image_line + at, run, std::min<int64_t>(block, image_line - at));
    }
  }
}

// Ask for a line of the source ahead of its use: a decoded image is out of the near caches by the time it is cropped, and
// the processor's own prefetching starts anew at every line of a crop.
inline void prefetch(const uint8_t* from, int64_t bytes) {
  constexpr int64_t cache_line = 64;
  for (int64_t at = 0; at < bytes; at += cache_line) __builtin_prefetch(from + at);
}

// `count` pixels, four bytes at once: the fourth must be readable and is written before whatever belongs there. The
// last pixel, which may end its buffer, moves three.
inline void copy_pixels(const uint8_t* from, int64_t from_step, uint8_t* to, int64_t to_step, int64_t count) {
  for (int64_t i = 0; i + 1 < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, 4);
  std::memcpy(to + (count - 1) * to_step, from + (count - 1) * from_step, channels);
}

}  // namespace

void resize_image(const uint8_t* data, const PlanRow& row, int32_t size, uint8_t* image) {
  thread_local Scratch scratch;
  Weights &across = scratch.across, &down = scratch.down;
  across.build(Axis(row.box.width, row.resized_width, row.filter), row.resized_width, row.window_left, size);
  down.build(Axis(row.box.height, row.resized_height, row.filter), row.resized_height, row.window_top, size);
  const int32_t columns = across.end - across.lowest, line_count = down.end - down.lowest;
  const int64_t stride = channels * row.width, line_bytes = (size * channels + block - 1) / block * block;
  uint8_t* tile = at_least(scratch.tile, columns * column_bytes);
  uint8_t* resized = at_least(scratch.resized, size * column_bytes);
  uint8_t* lines = at_least(scratch.lines, line_count * line_bytes);
  const int32_t top = row.box.top + down.lowest, left = row.box.left + across.lowest;
  const uint8_t* source = data + row.offset + top * stride + channels * left;
  for (int32_t y = 0; y < line_count; y += lines_per_tile) {
    const int32_t count = std::min(lines_per_tile, line_count - y);
    for (int32_t i = 0; i < count; ++i) {
      if (y + i + 2 < line_count) prefetch(source + (y + i + 2) * stride, channels * columns);
      copy_pixels(source + (y + i) * stride, channels, tile + channels * i, column_bytes, columns);
    }
    horizontal_pass(tile, across, size, resized);
    const uint8_t* first_column = resized + (row.flip ? (size - 1) * column_bytes : 0);
    const int64_t step = row.flip ? -column_bytes : column_bytes;
    for (int32_t i = 0; i < count; ++i)
      copy_pixels(first_column + channels * i, step, lines + (y + i) * line_bytes, channels, size);
  }
  vertical_pass(lines, line_bytes, down, size, image);
}

}  // namespace deit::cpu
