// Gaussian blur on the CPU: of each line its three passes at once, then three passes over the image for the columns. A
// pass adds whole runs of bytes, so it is the same code along both axes.
#include <cstring>

#include "../arithmetic/affine.h"
#include "../arithmetic/blur.h"
#include "stages.h"

namespace deit::cpu {
namespace {

// to[i] from the bytes i of 2 radius + 3 runs.
template <int fixed_radius>
INTO_CLONE void add_runs(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* __restrict to) {
  const int32_t last = 2 * fixed_radius + 2;
  const uint8_t* run[last + 1];
  for (int32_t k = 0; k <= last; ++k) run[k] = runs[k];
  for (int64_t i = 0; i < count; ++i) {
    uint32_t inside = 0;
    for (int32_t k = 1; k < last; ++k) inside += run[k][i];
    to[i] = blurred(box, inside, uint32_t{run[0][i]} + run[last][i]);
  }
}

#ifdef DEIT_AVX512
// The same with sums of 16 bits, each weighed together with the sum of the ends by the weights' halves of 12 bits.
template <int fixed_radius>
AVX512 void add_runs_in_registers(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* to) {
  constexpr int64_t width = sizeof(__m512i);
  constexpr int32_t last = 2 * fixed_radius + 2;
  constexpr __mmask16 all = 0xFFFF;  // forms without a mask make GCC 12 warn of its own header
  const auto weights = [](uint32_t inner, uint32_t outer) AVX512 {
    return _mm512_set1_epi32(static_cast<int32_t>(outer << 16 | inner));
  };
  const __m512i low = weights(box.inner & 0xFFF, box.outer & 0xFFF), high = weights(box.inner >> 12, box.outer >> 12);
  const __m512i half = _mm512_set1_epi32(1 << 23), ones = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
  const auto weighed = [&](__m512i pairs) AVX512 {
    const __m512i upper = _mm512_maskz_slli_epi32(all, _mm512_madd_epi16(pairs, high), 12);
    const __m512i lower = _mm512_add_epi32(_mm512_madd_epi16(pairs, low), half);
    return _mm512_maskz_srli_epi32(all, _mm512_add_epi32(upper, lower), 24);
  };
  const auto levels = [&](__m512i inside, __m512i ends) AVX512 {
    return _mm512_packus_epi32(weighed(_mm512_unpacklo_epi16(inside, ends)),
                               weighed(_mm512_unpackhi_epi16(inside, ends)));
  };
  for (int64_t i = 0; i < count; i += width) {
    const uint64_t mask = count - i >= width ? ~uint64_t{0} : (uint64_t{1} << (count - i)) - 1;
    __m512i run[last + 1];
    for (int32_t k = 0; k <= last; ++k) run[k] = _mm512_maskz_loadu_epi8(mask, runs[k] + i);
    const auto sum = [&](__m512i first, __m512i second, bool upper) AVX512 {
      const __m512i pairs = upper ? _mm512_unpackhi_epi8(first, second) : _mm512_unpacklo_epi8(first, second);
      return _mm512_maddubs_epi16(pairs, ones);
    };
    __m512i done[2];
    for (int part = 0; part < 2; ++part) {
      __m512i inside = sum(run[last / 2], zero, part);
      for (int32_t k = 1; k < last / 2; ++k) inside = _mm512_add_epi16(inside, sum(run[k], run[last - k], part));
      done[part] = levels(inside, sum(run[0], run[last], part));
    }
    _mm512_mask_storeu_epi8(to + i, mask, _mm512_packus_epi16(done[0], done[1]));
  }
}
#endif

INTO_CLONE void add_many_runs(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* __restrict to) {
  constexpr int64_t part = 1024;
  uint32_t inside[part];
  const int32_t last = 2 * box.radius + 2;
  for (int64_t begin = 0; begin < count; begin += part) {
    const int64_t end = count - begin < part ? count - begin : part;
    std::memset(inside, 0, sizeof inside);
    for (int32_t k = 1; k < last; ++k)
      for (int64_t i = 0; i < end; ++i) inside[i] += runs[k][begin + i];
    for (int64_t i = 0; i < end; ++i)
      to[begin + i] = blurred(box, inside[i], uint32_t{runs[0][begin + i]} + runs[last][begin + i]);
  }
}

VECTOR_CLONES void box_pass_portable(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* to) {
  if (box.radius == 0)
    add_runs<0>(runs, box, count, to);
  else if (box.radius == 1)
    add_runs<1>(runs, box, count, to);
  else
    add_many_runs(runs, box, count, to);
}

void box_pass(const uint8_t* const* runs, const BoxBlur& box, int64_t count, uint8_t* to) {
#ifdef DEIT_AVX512
  if (has_avx512 && box.radius == 0) return add_runs_in_registers<0>(runs, box, count, to);
  if (has_avx512 && box.radius == 1) return add_runs_in_registers<1>(runs, box, count, to);
#endif
  box_pass_portable(runs, box, count, to);
}

void repeat_edges(uint8_t* line, int64_t bytes, int32_t pixels) {
  for (int64_t i = 1; i <= pixels; ++i) {
    std::memcpy(line - channels * i, line, channels);
    std::memcpy(line + bytes + channels * (i - 1), line + bytes - channels, channels);
  }
}

}  // namespace

void run_blur(uint8_t* image, int32_t height, int32_t width, const OpCall& call) {
  thread_local std::vector<uint8_t> copy, memory;
  const BoxBlur box = box_blur(call.arg);
  const int32_t reach = box.radius + 1;
  const int64_t bytes = channels * width, margin = channels * reach;
  uint8_t* blurred_lines = at_least(copy, height * bytes);
  uint8_t* line[2];
  line[0] = at_least(memory, 2 * (bytes + 2 * margin)) + margin;
  line[1] = line[0] + bytes + 2 * margin;
  std::vector<const uint8_t*> runs(2 * reach + 1);
  for (int64_t y = 0; y < height; ++y) {
    std::memcpy(line[0], image + y * bytes, bytes);
    for (int pass = 0; pass < blur_passes; ++pass) {
      uint8_t* from = line[pass % 2];
      repeat_edges(from, bytes, reach);
      for (int32_t k = -reach; k <= reach; ++k) runs[k + reach] = from + channels * k;
      box_pass(runs.data(), box, bytes, pass + 1 < blur_passes ? line[(pass + 1) % 2] : blurred_lines + y * bytes);
    }
  }
  uint8_t* images[2] = {blurred_lines, image};
  for (int pass = 0; pass < blur_passes; ++pass)
    for (int32_t y = 0; y < height; ++y) {
      for (int32_t k = -reach; k <= reach; ++k)
        runs[k + reach] = images[pass % 2] + clipped(y + k, height) * bytes;
      box_pass(runs.data(), box, bytes, images[(pass + 1) % 2] + y * bytes);
    }
}

}  // namespace deit::cpu
