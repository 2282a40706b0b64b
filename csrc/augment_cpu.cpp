// The CPU implementation: loops over the arithmetic of augment/*.h, image by image, in scratch memory that a thread keeps.
//
// Both resize passes are the same inner loop over 96 adjacent bytes. 96 is 32 lines of RGB pixels: the horizontal pass
// works on 32 source lines transposed so that a column's pixels lie side by side, and then needs no shuffles; the
// vertical pass finds its 96 bytes along a line. 96 int32 sums stay in vector registers from AVX2 on.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "augment.h"
#include "augment/resample.h"

// The loops are compiled once for each instruction set and chosen when the binary loads; all give the same integers.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(DEIT_NO_CLONES)
#define VECTOR_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define VECTOR_CLONES
#endif

namespace deit::cpu {
namespace {

constexpr int block = 96, lines_per_tile = 32;
constexpr int64_t pixel = 3;
constexpr int64_t column_bytes = block + 4;  // of a tile: room for the fourth byte of the last line's pixel

// The weights of `size` outputs along one axis, zero weights at both ends trimmed. Together they read [lowest, end);
// the first output need not be the one that reads lowest: one that lies on a pixel may read that pixel only.
struct Weights {
  std::vector<int32_t> first, count, begin, value;
  int32_t lowest, end;

  void build(const Axis& axis, int32_t window, int32_t size) {
    first.resize(size);
    count.resize(size);
    begin.resize(size);
    value.clear();
    lowest = axis.before;
    end = 0;
    for (int32_t i = 0; i < size; ++i) {
      const Taps taps = axis.taps(window + i);
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
  std::vector<uint8_t> tile, resized, lines, image;
};

uint8_t* at_least(std::vector<uint8_t>& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size()) < bytes) buffer.resize(bytes);
  return buffer.data();
}

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

// to[0, block) = the rounded weighted sum of `count` runs of as many bytes, `stride` apart.
inline __attribute__((always_inline)) void weighted_sum(const uint8_t* from, int64_t stride, const int32_t* weight,
                                                        int32_t count, uint8_t* to) {
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
    weighted_sum(tile + (weights.first[x] - weights.lowest) * column_bytes, column_bytes, &weights.value[weights.begin[x]],
                 weights.count[x], resized + x * column_bytes);
}

// `line_bytes` is a multiple of `block`, so the last run of a line reads padding.
VECTOR_CLONES void vertical_pass(const uint8_t* lines, int64_t line_bytes, const Weights& weights, int32_t size,
                                 uint8_t* image) {
  const int64_t image_line = size * pixel;
  for (int32_t y = 0; y < size; ++y) {
    const uint8_t* from = lines + (weights.first[y] - weights.lowest) * line_bytes;
    for (int64_t at = 0; at < image_line; at += block) {
      uint8_t run[block];
      weighted_sum(from + at, line_bytes, &weights.value[weights.begin[y]], weights.count[y], run);
      std::memcpy(image + y * image_line + at, run, std::min<int64_t>(block, image_line - at));
    }
  }
}

// `count` pixels, four bytes at once: the fourth must be readable and is written before whatever belongs there. The
// last pixel, which may end its buffer, moves three.
inline void copy_pixels(const uint8_t* from, int64_t from_step, uint8_t* to, int64_t to_step, int64_t count) {
  for (int64_t i = 0; i + 1 < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, 4);
  std::memcpy(to + (count - 1) * to_step, from + (count - 1) * from_step, pixel);
}

// Crop, horizontal pass, vertical pass, flip: one image of size x size pixels.
void resize_image(const uint8_t* data, const PlanRow& row, int32_t size, uint8_t* image) {
  Scratch& scratch = thread_scratch();
  Weights &across = scratch.across, &down = scratch.down;
  across.build(Axis(row.box.width, row.resized_width, row.filter), row.window_left, size);
  down.build(Axis(row.box.height, row.resized_height, row.filter), row.window_top, size);
  const int32_t columns = across.end - across.lowest, line_count = down.end - down.lowest;
  const int64_t stride = pixel * row.width, line_bytes = (size * pixel + block - 1) / block * block;
  uint8_t* tile = at_least(scratch.tile, columns * column_bytes);
  uint8_t* resized = at_least(scratch.resized, size * column_bytes);
  uint8_t* lines = at_least(scratch.lines, line_count * line_bytes);
  const int32_t top = row.box.top + down.lowest, left = row.box.left + across.lowest;
  const uint8_t* source = data + row.offset + top * stride + pixel * left;
  for (int32_t y = 0; y < line_count; y += lines_per_tile) {
    const int32_t count = std::min(lines_per_tile, line_count - y);
    for (int32_t i = 0; i < count; ++i)
      copy_pixels(source + (y + i) * stride, pixel, tile + pixel * i, column_bytes, columns);
    horizontal_pass(tile, across, size, resized);
    const uint8_t* first_column = resized + (row.flip ? (size - 1) * column_bytes : 0);
    const int64_t step = row.flip ? -column_bytes : column_bytes;
    for (int32_t i = 0; i < count; ++i)
      copy_pixels(first_column + pixel * i, step, lines + (y + i) * line_bytes, pixel, size);
  }
  vertical_pass(lines, line_bytes, down, size, image);
}

// A run of pixels into three planes; levels: [3][256].
template <typename Bits>
void finish_run(const uint8_t* pixels, int64_t count, const uint32_t* levels, Bits* red, Bits* green, Bits* blue) {
  for (int64_t i = 0; i < count; ++i, pixels += 3) {
    red[i] = static_cast<Bits>(levels[pixels[0]]);
    green[i] = static_cast<Bits>(levels[256 + pixels[1]]);
    blue[i] = static_cast<Bits>(levels[512 + pixels[2]]);
  }
}

template <typename Bits>
void finish_image(const uint8_t* image, int32_t size, const uint32_t* levels, const Finish& finish, Bits* output) {
  const int64_t side = size, pixels = side * side, patch = finish.patch, patch_pixels = patch * patch;
  switch (finish.layout) {
    case Layout::nchw:
      return finish_run(image, pixels, levels, output, output + pixels, output + 2 * pixels);
    case Layout::channels_last:
      for (int64_t i = 0; i < pixels; ++i)
        for (int c = 0; c < 3; ++c) output[i * 3 + c] = static_cast<Bits>(levels[c * 256 + image[i * 3 + c]]);
      return;
    case Layout::patches:
      for (int64_t top = 0; top < side; top += patch)
        for (int64_t left = 0; left < side; left += patch, output += 3 * patch_pixels)
          for (int64_t y = 0; y < patch; ++y) {
            Bits* line = output + y * patch;
            finish_run(image + ((top + y) * side + left) * 3, patch, levels, line, line + patch_pixels,
                       line + 2 * patch_pixels);
          }
  }
}

PlanRow read_row(const Batch& batch, int64_t index) {
  PlanRow row;  // the rows are bytes of a tensor and may lie at any address
  std::memcpy(&row, reinterpret_cast<const uint8_t*>(batch.rows) + index * sizeof(PlanRow), sizeof row);
  return row;
}

const char* describe(RowProblem problem) {
  switch (problem) {
    case RowProblem::sides: return "an image's sides lie in [1, 2**24 - 1]";
    case RowProblem::buffer: return "the image leaves the data buffer";
    case RowProblem::empty_box: return "the box is empty";
    case RowProblem::box: return "the box leaves the image";
    case RowProblem::window: return "the window leaves the resized image";
    default: return "the filter or flip is unknown";
  }
}

}  // namespace

void check_rows(const Batch& batch) {
  for (int64_t index = 0; index < batch.count; ++index) {
    const PlanRow row = read_row(batch, index);
    const RowProblem problem = row_problem(row, batch.data_bytes, batch.size);
    if (problem == RowProblem::none) continue;
    std::string text = "row " + std::to_string(index) + ": " + describe(problem) + ": (" + std::to_string(row.offset);
    for (const int32_t value : {row.height, row.width, row.box.top, row.box.left, row.box.height, row.box.width,
                                row.resized_height, row.resized_width, row.window_top, row.window_left,
                                static_cast<int32_t>(row.filter), row.flip})
      text += ", " + std::to_string(value);
    throw std::invalid_argument(text + ") as offset, height, width, box, resized, window, filter, flip");
  }
}

void resize(const Batch& batch, int64_t begin, int64_t end, uint8_t* images) {
  const int64_t image_bytes = pixel * batch.size * batch.size;
  for (int64_t index = begin; index < end; ++index)
    resize_image(batch.data, read_row(batch, index), batch.size, images + index * image_bytes);
}

std::vector<uint32_t> level_bits(const Finish& finish) {
  std::vector<uint32_t> bits;
  for (int c = 0; c < 3; ++c)
    for (int level = 0; level < 256; ++level) {
      const float value = normalise(static_cast<uint8_t>(level), finish.mean[c], finish.std[c]);
      bits.push_back(finish.type == Type::float32   ? float_bits(value)
                     : finish.type == Type::float16 ? float16_bits(value)
                                                    : bfloat16_bits(value));
    }
  return bits;
}

void apply(const Batch& batch, int64_t begin, int64_t end, const std::vector<uint32_t>& levels, const Finish& finish,
           void* output) {
  const int64_t values = pixel * batch.size * batch.size;
  uint8_t* image = at_least(thread_scratch().image, values);
  for (int64_t index = begin; index < end; ++index) {
    resize_image(batch.data, read_row(batch, index), batch.size, image);
    if (finish.type == Type::float32)
      finish_image(image, batch.size, levels.data(), finish, static_cast<uint32_t*>(output) + index * values);
    else
      finish_image(image, batch.size, levels.data(), finish, static_cast<uint16_t*>(output) + index * values);
  }
}

}  // namespace deit::cpu
