// The ops on the CPU, in place, over the arithmetic of arithmetic/{colour,histogram}.h.
#include <cstring>

#include "../arithmetic/colour.h"
#include "../arithmetic/histogram.h"
#include "stages.h"

namespace deit::cpu {
namespace {

struct Histogram {
  uint32_t count[3][256];
};

void join(Tables& tables, int channel, const uint8_t* table) {
  for (uint8_t& level : tables.level[channel]) level = table[level];
  tables.identity = false;
}

// Two sets of counters, since equal neighbours would wait for each other.
Histogram histogram(const uint8_t* image, int64_t pixels) {
  uint32_t count[2][3][256] = {};
  for (int64_t i = 0; i < pixels; ++i, image += channels)
    for (int c = 0; c < 3; ++c) ++count[i & 1][c][image[c]];
  Histogram sum;
  for (int c = 0; c < 3; ++c)
    for (int level = 0; level < 256; ++level) sum.count[c][level] = count[0][c][level] + count[1][c][level];
  return sum;
}

// The histogram op on the levels that the pending tables give.
void join_histogram_op(const uint8_t* image, int64_t pixels, Op op, Tables& tables) {
  const Histogram raw = histogram(image, pixels);
  for (int c = 0; c < 3; ++c) {
    uint32_t count[256] = {};
    for (int level = 0; level < 256; ++level) count[tables.level[c][level]] += raw.count[c][level];
    uint8_t table[256];
    (op == Op::equalize ? equalize_table : auto_contrast_table)(count, table);
    join(tables, c, table);
  }
}

VECTOR_CLONES uint64_t gray_sum(const uint8_t* image, int64_t pixels) {
  constexpr int64_t run = 1 << 16;  // whose sum fits 32 bits
  uint64_t total = 0;
  for (int64_t begin = 0; begin < pixels; begin += run) {
    const int64_t count = pixels - begin < run ? pixels - begin : run;
    const uint8_t* pixel = image + channels * begin;
    uint32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += gray(pixel[3 * i], pixel[3 * i + 1], pixel[3 * i + 2]);
    total += sum;
  }
  return total;
}

VECTOR_CLONES void blend_with_gray(uint8_t* image, int64_t pixels, float factor) {
  for (int64_t i = 0; i < pixels; ++i) {
    uint8_t* pixel = image + channels * i;
    const int32_t red = pixel[0], green = pixel[1], blue = pixel[2], degenerate = gray(red, green, blue);
    pixel[0] = blend(degenerate, red, factor);
    pixel[1] = blend(degenerate, green, factor);
    pixel[2] = blend(degenerate, blue, factor);
  }
}

// The outermost pixels stay as they are.
VECTOR_CLONES void blend_with_smoothed(const uint8_t* from, int32_t height, int32_t width, float factor, uint8_t* to) {
  const int64_t line_bytes = channels * width;
  for (int64_t y = 1; y + 1 < height; ++y) {
    const uint8_t* line = from + y * line_bytes;
    const uint8_t *above = line - line_bytes, *below = line + line_bytes;
    uint8_t* out = to + y * line_bytes;
    for (int64_t i = channels; i < line_bytes - channels; ++i) {
      const int32_t neighbours =
          above[i - 3] + above[i] + above[i + 3] + line[i - 3] + line[i + 3] + below[i - 3] + below[i] + below[i + 3];
      out[i] = blend(smoothed(neighbours, line[i]), line[i], factor);
    }
  }
}

const uint8_t* copy_of(const uint8_t* image, int64_t bytes) {
  thread_local std::vector<uint8_t> memory;
  uint8_t* copy = at_least(memory, bytes);
  std::memcpy(copy, image, bytes);
  return copy;
}

}  // namespace

const Tables& identity_tables() {
  static const Tables tables = [] {
    Tables made;
    for (auto& table : made.level) identity_table(table);
    made.identity = true;
    return made;
  }();
  return tables;
}

void apply_tables(uint8_t* image, int64_t pixels, Tables& tables) {
  if (tables.identity) return;
  for (int64_t i = 0; i < pixels; ++i, image += channels)
    for (int c = 0; c < 3; ++c) image[c] = tables.level[c][image[c]];
  tables = identity_tables();
}

void run_ops(uint8_t* image, int32_t height, int32_t width, const OpCall* calls, int count, Tables& tables) {
  const int64_t pixels = int64_t{height} * width;
  tables = identity_tables();
  for (int i = 0; i < count; ++i) {
    const OpCall& call = calls[i];
    if (call.op == Op::none) continue;
    if (call.op == Op::auto_contrast || call.op == Op::equalize) {
      join_histogram_op(image, pixels, call.op, tables);
      continue;
    }
    if (call.op == Op::contrast || !is_table(call.op)) apply_tables(image, pixels, tables);
    const int32_t mean = call.op == Op::contrast ? rounded_mean(gray_sum(image, pixels), pixels) : 0;
    if (is_table(call.op)) {
      uint8_t table[256];
      for (int level = 0; level < 256; ++level) table[level] = table_level(call, level, mean);
      for (int c = 0; c < 3; ++c) join(tables, c, table);
    } else if (call.op == Op::color) {
      blend_with_gray(image, pixels, static_cast<float>(call.arg));
    } else if (call.op == Op::sharpness) {
      blend_with_smoothed(copy_of(image, channels * pixels), height, width, static_cast<float>(call.arg), image);
    } else if (call.op == Op::gaussian_blur) {
      run_blur(image, height, width, call);
    } else {
      run_affine(image, height, width, call);
    }
  }
}

}  // namespace deit::cpu
