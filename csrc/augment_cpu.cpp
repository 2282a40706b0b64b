// The CPU implementation: loops over the arithmetic of augment/*.h, one image a call, scratch memory kept by the thread.
//
// Both resize passes are the same inner loop over 48 adjacent bytes. 48 is 16 lines of RGB pixels: the horizontal pass
// first transposes 16 source lines so that one column's pixels lie side by side, and then needs no shuffles; the vertical
// pass finds its 48 bytes along the line. 48 int32 sums stay in vector registers from AVX2 on.
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

constexpr int block = 48, lines_per_tile = 16;
constexpr int64_t pixel = 3;

// The weights of `size` outputs along one axis, zero weights at both ends trimmed.
struct Weights {
  std::vector<int32_t> first, count, begin, value;

  void build(const Axis& axis, int32_t window, int32_t size) {
    first.resize(size);
    count.resize(size);
    begin.resize(size);
    value.clear();
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
    }
  }

  int32_t end(int32_t i) const { return first[i] + count[i]; }

 private:
  std::vector<double> unnormalised;
};

struct Scratch {
  Weights across, down;
  std::vector<uint8_t> tile, lines, image;
};

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

// to[0, 48) = the rounded weighted sum of `count` runs of 48 bytes, `stride` apart.
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

// Up to 16 source lines, transposed to tile[column][line][rgb], each resized to one line of `lines`.
VECTOR_CLONES void horizontal_pass(const uint8_t* tile, const Weights& weights, int32_t size, bool flip, int32_t count,
                                   uint8_t* lines, int64_t line_bytes) {
  const int32_t origin = weights.first[0];
  for (int32_t x = 0; x < size; ++x) {
    uint8_t column[block];
    weighted_sum(tile + int64_t{weights.first[x] - origin} * block, block, &weights.value[weights.begin[x]],
                 weights.count[x], column);
    uint8_t* to = lines + pixel * (flip ? size - 1 - x : x);
    for (int32_t line = 0; line < count; ++line) std::memcpy(to + line * line_bytes, column + pixel * line, pixel);
  }
}

// `line_bytes` is a multiple of 48, so the last run of a line reads and writes padding.
VECTOR_CLONES void vertical_pass(const uint8_t* lines, int64_t line_bytes, const Weights& weights, int32_t size,
                                 uint8_t* image) {
  const int32_t origin = weights.first[0];
  const int64_t image_line = size * pixel;
  for (int32_t y = 0; y < size; ++y) {
    const uint8_t* from = lines + (weights.first[y] - origin) * line_bytes;
    for (int64_t at = 0; at < image_line; at += block) {
      uint8_t run[block];
      weighted_sum(from + at, line_bytes, &weights.value[weights.begin[y]], weights.count[y], run);
      std::memcpy(image + y * image_line + at, run, std::min<int64_t>(block, image_line - at));
    }
  }
}

void transpose_lines(const uint8_t* from, int64_t stride, int32_t columns, int32_t count, uint8_t* tile) {
  for (int32_t line = 0; line < count; ++line)
    for (int32_t x = 0; x < columns; ++x)
      std::memcpy(tile + int64_t{x} * block + pixel * line, from + line * stride + pixel * x, pixel);
}

// Crop, horizontal pass, vertical pass, flip: one image of size x size pixels.
void resize_image(const uint8_t* data, const PlanRow& row, int32_t size, uint8_t* image) {
  Scratch& scratch = thread_scratch();
  Weights &across = scratch.across, &down = scratch.down;
  across.build(Axis(row.box.width, row.resized_width, row.filter), row.window_left, size);
  down.build(Axis(row.box.height, row.resized_height, row.filter), row.window_top, size);
  const int32_t column = across.first[0], columns = across.end(size - 1) - column;
  const int32_t line = down.first[0], line_count = down.end(size - 1) - line;
  const int64_t stride = pixel * row.width, line_bytes = (size * pixel + block - 1) / block * block;
  scratch.tile.resize(std::max(scratch.tile.size(), static_cast<size_t>(columns) * block));
  scratch.lines.resize(std::max(scratch.lines.size(), static_cast<size_t>(line_count * line_bytes)));
  const uint8_t* source = data + row.offset + (int64_t{row.box.top} + line) * stride + pixel * (row.box.left + column);
  for (int32_t y = 0; y < line_count; y += lines_per_tile) {
    const int32_t count = std::min(lines_per_tile, line_count - y);
    transpose_lines(source + y * stride, stride, columns, count, scratch.tile.data());
    horizontal_pass(scratch.tile.data(), across, size, row.flip, count, scratch.lines.data() + y * line_bytes, line_bytes);
  }
  vertical_pass(scratch.lines.data(), line_bytes, down, size, image);
}

// levels: [3][256]
template <typename Bits>
void finish_image(const uint8_t* image, int32_t size, const uint32_t* levels, const Finish& finish, Bits* output) {
  const int64_t pixels = int64_t{size} * size;
  if (finish.layout == Layout::channels_last) {
    for (int64_t i = 0; i < pixels; ++i)
      for (int c = 0; c < 3; ++c) output[i * 3 + c] = static_cast<Bits>(levels[c * 256 + image[i * 3 + c]]);
    return;
  }
  if (finish.layout == Layout::nchw) {
    for (int c = 0; c < 3; ++c)
      for (int64_t i = 0; i < pixels; ++i)
        output[c * pixels + i] = static_cast<Bits>(levels[c * 256 + image[i * 3 + c]]);
    return;
  }
  const int32_t patch = finish.patch;
  for (int32_t top = 0; top < size; top += patch)
    for (int32_t left = 0; left < size; left += patch)
      for (int c = 0; c < 3; ++c)
        for (int32_t y = top; y < top + patch; ++y)
          for (int32_t x = left; x < left + patch; ++x)
            *output++ = static_cast<Bits>(levels[c * 256 + image[(int64_t{y} * size + x) * 3 + c]]);
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
  std::vector<uint8_t>& image = thread_scratch().image;
  image.resize(std::max(image.size(), static_cast<size_t>(values)));
  for (int64_t index = begin; index < end; ++index) {
    resize_image(batch.data, read_row(batch, index), batch.size, image.data());
    if (finish.type == Type::float32)
      finish_image(image.data(), batch.size, levels.data(), finish, static_cast<uint32_t*>(output) + index * values);
    else
      finish_image(image.data(), batch.size, levels.data(), finish, static_cast<uint16_t*>(output) + index * values);
  }
}

}  // namespace deit::cpu
