// The ops on the CPU, in place, over the arithmetic of arithmetic/{colour,histogram}.h.
#include <algorithm>
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

#ifdef DEIT_AVX512
// One table for all channels, which fills four registers.
AVX512 void apply_one_table(uint8_t* bytes, int64_t count, const uint8_t* table) {
  constexpr int64_t width = sizeof(__m512i);
  __m512i quarter[4];
  for (int i = 0; i < 4; ++i) quarter[i] = _mm512_loadu_si512(table + width * i);
  for (; count > 0; count -= width, bytes += width) {
    const uint64_t mask = count >= width ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    const __m512i level = _mm512_maskz_loadu_epi8(mask, bytes);
    const __m512i low = _mm512_permutex2var_epi8(quarter[0], level, quarter[1]);
    const __m512i high = _mm512_permutex2var_epi8(quarter[2], level, quarter[3]);
    _mm512_mask_storeu_epi8(bytes, mask, _mm512_mask_blend_epi8(_mm512_movepi8_mask(level), low, high));
  }
}
#endif

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
#ifdef DEIT_AVX512
  const bool equal = std::equal(tables.level[0], tables.level[2], tables.level[1]);
  if (has_avx512 && equal) {
    apply_one_table(image, channels * pixels, tables.level[0]);
    tables = identity_tables();
    return;
  }
#endif
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
